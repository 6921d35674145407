//! Finding the configuration, the controller's socket and the pins.

use std::path::{Path, PathBuf};

use super::{Place, output::Failure};
use crate::{
    config::{self, DEFAULT_FILE, DEFAULT_PIN_PATH, DEFAULT_SOCKET},
    dataplane::{Maps, Pins},
};

impl Place {
    /// The configuration file: the one that is named, or the default.
    pub(super) fn file(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE))
    }

    /// The control socket.
    pub(super) fn socket(&self) -> Result<PathBuf, Failure> {
        self.find(&self.socket, "socket", DEFAULT_SOCKET)
    }

    /// The pins.
    pub(super) fn pins(&self) -> Result<Pins, Failure> {
        let path = self.find(&self.pin_path, "pin_path", DEFAULT_PIN_PATH)?;
        Ok(Pins::new(&path))
    }

    /// The pinned maps.
    pub(super) fn maps(&self) -> Result<(Pins, Maps), Failure> {
        let pins = self.pins()?;
        let maps = Maps::open(&pins)?;
        Ok((pins, maps))
    }

    /// What a flag says, else a configuration that is named or in the usual place, else the
    /// default.
    fn find(&self, flag: &Option<PathBuf>, key: &str, default: &str) -> Result<PathBuf, Failure> {
        if let Some(path) = flag {
            return Ok(path.clone());
        }
        if self.config.is_none() && !Path::new(DEFAULT_FILE).exists() {
            return Ok(PathBuf::from(default));
        }
        match config::path_in(&self.file(), key) {
            Ok(found) => Ok(found.unwrap_or_else(|| PathBuf::from(default))),
            Err(invalid) => Err(Failure::problems(
                invalid.to_string(),
                "the configuration has a problem; --socket and --pin-path say without it where the controller is",
            )),
        }
    }
}
