//! Where maps and links are pinned.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use lb_common::abi;
use nix::sys::statfs::{self, BPF_FS_MAGIC};

use super::{DataplaneError, link};

/// The directory of pins: `PIN_PATH/vN` holds the maps under their names, and a link for each
/// interface as `link_INDEX_NAME`. N is the layout's version.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    directory: PathBuf,
    /// The root, where the way there may be closed by now.
    held: Option<Arc<File>>,
}

/// The pin of an interface's link.
#[derive(Clone, Debug)]
pub struct LinkPin {
    /// The interface's index in its network namespace.
    pub index: u32,
    /// Its name when the link was made.
    pub name: String,
    /// The pin.
    pub path: PathBuf,
}

const LINK_PREFIX: &str = "link_";
const STAGES_PREFIX: &str = "stages_";

impl Pins {
    /// The pins under `root`, which needn't exist.
    pub fn new(root: &Path) -> Self {
        let directory = root.join(format!("v{}", abi::VERSION));
        Self { root: root.to_path_buf(), directory, held: None }
    }

    /// The same pins for a process that is about to give up the privileges to go there: the BPF file system is root's
    /// alone on many hosts. They are gone to by way of an open directory.
    ///
    /// # Errors
    ///
    /// It can't be opened.
    pub fn hold(&self) -> Result<Self, DataplaneError> {
        let failed = DataplaneError::system(self.root.display().to_string());
        let held = File::open(&self.root).map_err(failed)?;
        let root = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
        Ok(Self { held: Some(Arc::new(held)), ..Self::new(&root) })
    }

    /// Where the directory of this layout is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the directory.
    ///
    /// # Errors
    ///
    /// The path isn't on a BPF file system, pins of another layout are there, or the user may not.
    pub fn create(&self) -> Result<(), DataplaneError> {
        self.check_file_system()?;
        self.check_layout()?;
        fs::create_dir_all(&self.directory).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => {
                DataplaneError::Permission { what: self.directory.display().to_string() }
            }
            _ => DataplaneError::system(self.directory.display().to_string())(error),
        })
    }

    /// Why nothing is pinned: no controller made pins, or the file system they are on isn't here.
    pub fn absence(&self) -> DataplaneError {
        match self.check_file_system() {
            Ok(()) => DataplaneError::NotLoaded(self.directory.clone()),
            Err(error) => error,
        }
    }

    /// Demands a BPF file system where the pins are, or are to be.
    fn check_file_system(&self) -> Result<(), DataplaneError> {
        let existing = self.root.ancestors().find(|path| path.exists()).unwrap_or(&self.root);
        let file_system = statfs::statfs(existing)
            .map_err(io::Error::from)
            .map_err(DataplaneError::system(format!("{}", existing.display())))?;
        if file_system.filesystem_type() != BPF_FS_MAGIC {
            return Err(DataplaneError::NoBpfFileSystem(self.root.clone()));
        }
        Ok(())
    }

    /// Demands that nothing of another layout is pinned.
    ///
    /// # Errors
    ///
    /// Something is.
    pub fn check_layout(&self) -> Result<(), DataplaneError> {
        let other = self.layouts().into_iter().find(|path| *path != self.directory);
        match other {
            Some(other) => Err(DataplaneError::OtherLayout {
                path: self.root.clone(),
                found: file_name(&other).to_owned(),
                wanted: file_name(&self.directory).to_owned(),
            }),
            None => Ok(()),
        }
    }

    /// Whether maps are pinned.
    pub fn exist(&self) -> bool {
        self.map(abi::maps::SETTINGS).exists()
    }

    /// The names of maps that aren't pinned, and of stages if none are.
    pub fn missing(&self) -> Vec<&'static str> {
        let is_missing = |name: &&str| match *name {
            abi::maps::STAGES => self.stages().is_empty(),
            name => !self.map(name).exists(),
        };
        abi::maps::ALL.into_iter().filter(is_missing).collect()
    }

    /// Whether the file system that the pins are on is still mounted, for who holds them ([`Self::hold`]).
    pub fn are_mounted(&self) -> bool {
        let Some(held) = &self.held else { return true };
        let status = fs::read_to_string(format!("/proc/self/fdinfo/{}", held.as_raw_fd()));
        let mounts = fs::read_to_string("/proc/self/mountinfo");
        // Without /proc, nobody knows.
        let (Ok(status), Ok(mounts)) = (status, mounts) else { return true };
        let mount = status.lines().find_map(|line| line.strip_prefix("mnt_id:"));
        let is_it = |line: &str| line.split(' ').next() == mount.map(str::trim);
        mounts.lines().any(is_it)
    }

    /// The directory of this layout's pins.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where the stages of a program that was just loaded are to be pinned.
    pub fn new_stages(&self) -> PathBuf {
        self.directory.join(format!("{STAGES_PREFIX}{:08x}", fastrand::u32(..)))
    }

    /// Where stages are pinned: of the program in force, and for a moment of the one before.
    pub fn stages(&self) -> Vec<PathBuf> {
        let is_it = |path: &PathBuf| file_name(path).starts_with(STAGES_PREFIX);
        entries(&self.directory).into_iter().filter(is_it).collect()
    }

    /// Where a new link to an interface is to be pinned. A BPF file system allows no dots in names;
    /// an interface may have some in its own, but no colons.
    pub fn new_link(&self, interface: u32, name: &str) -> PathBuf {
        self.directory.join(format!("{LINK_PREFIX}{interface}_{}", name.replace('.', ":")))
    }

    /// The links that are pinned.
    pub fn links(&self) -> Vec<LinkPin> {
        let parse = |path: PathBuf| {
            let (index, name) = file_name(&path).strip_prefix(LINK_PREFIX)?.split_once('_')?;
            Some(LinkPin { index: index.parse().ok()?, name: name.replace(':', "."), path })
        };
        entries(&self.directory).into_iter().filter_map(parse).collect()
    }

    /// Whether one of the links still attaches something, wherever that is.
    pub fn are_attached(&self) -> bool {
        self.links().iter().any(|link| link::is_attached(&link.path).unwrap_or(false))
    }

    /// Removes every pin, as [`Self::remove`], since something failed, which is what there is to be told.
    pub fn remove_after_failure(&self) {
        if let Err(error) = self.remove() {
            tracing::warn!(%error, "removing the pins");
        }
    }

    /// The directories of this and of other layouts: whatever else is there is somebody else's.
    fn layouts(&self) -> Vec<PathBuf> {
        let is_one = |path: &PathBuf| {
            let number = file_name(path).strip_prefix('v');
            number.is_some_and(|number| number.parse::<u32>().is_ok())
        };
        entries(&self.root).into_iter().filter(is_one).collect()
    }

    /// Removes every pin, of whatever layout, and the directory. Returns how many there were.
    ///
    /// # Errors
    ///
    /// Something can't be removed.
    pub fn remove(&self) -> Result<usize, DataplaneError> {
        let mut removed = 0;
        for directory in self.layouts() {
            let (links, maps): (Vec<PathBuf>, Vec<PathBuf>) = entries(&directory)
                .into_iter()
                .partition(|path| file_name(path).starts_with(LINK_PREFIX));
            // Links first: the program must not run on without its maps' pins.
            for pin in &links {
                link::remove(pin).map_err(DataplaneError::system(pin.display().to_string()))?;
            }
            for pin in &maps {
                fs::remove_file(pin).map_err(DataplaneError::system(pin.display().to_string()))?;
            }
            removed += links.len() + maps.len();
            fs::remove_dir(&directory)
                .map_err(DataplaneError::system(directory.display().to_string()))?;
        }
        match fs::remove_dir(&self.root) {
            _ if self.held.is_some() => Ok(removed),
            Ok(()) => Ok(removed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(removed),
            // Somebody else's pins are beside them.
            Err(error)
                if [io::ErrorKind::DirectoryNotEmpty, io::ErrorKind::ResourceBusy]
                    .contains(&error.kind()) =>
            {
                Ok(removed)
            }
            Err(error) => Err(DataplaneError::system(self.root.display().to_string())(error)),
        }
    }
}

/// What a directory holds; nothing where it doesn't exist.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| entry.path()).collect()
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or_default()
}
