//! What `cargo xtask bench` measures, and how it is shown.

use std::{panic, thread};

use anyhow::{Context, Result, ensure};

mod bed;
mod cases;
pub mod control;
mod guest;
pub mod interruption;
pub mod network;
pub mod packets;
mod processors;
pub mod rate;
mod report;
mod senders;
mod systems;
pub mod virtio;

pub use report::{Bar, Report, prepare};
pub use systems::{Side, redirect};

/// Where the programs are that are measured, each of which runs as a process of its own.
pub struct Programs {
    /// `lb`.
    pub lb: String,
    /// The least that forwards.
    pub redirector: String,
}

impl Programs {
    /// Those that were built with this one.
    ///
    /// # Errors
    ///
    /// One isn't there.
    pub fn beside_this_one() -> Result<Self> {
        let find = |name: &str| -> Result<String> {
            let path = std::env::current_exe()?.with_file_name(name);
            let lacks = "isn't there: `cargo xtask bench` builds it";
            ensure!(path.exists(), "{} {lacks}", path.display());
            Ok(path.to_str().context("UTF-8")?.to_owned())
        };
        Ok(Self { lb: find("lb-under-test")?, redirector: find("redirector")? })
    }
}

/// Does something in a thread of its own: one that runs packets through the program stays on its CPU from then on, and so would
/// all that it starts.
///
/// # Errors
///
/// It fails.
pub fn apart<T: Send>(action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let done = thread::scope(|scope| scope.spawn(action).join());
    done.unwrap_or_else(|panicked| panic::resume_unwind(panicked))
}
