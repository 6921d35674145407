//! What comes before everything else: the configuration is read, and privileges are given up.

use std::{
    fs::{self, File},
    io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::resource::{Resource, getrlimit, setrlimit},
};

use super::{checks::needs_vantage, preflight, start::StartError};
use crate::{
    config::{self, Config, Invalid},
    confine::{Identity, become_user, confine, take_back},
    dataplane::{Maps, ModeChoice, Pins},
    journal::Journal,
    log::Log,
    netlink::Vantage,
};

/// What the command line sets instead of the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Interfaces.
    pub interfaces: Vec<String>,
    /// How the program is attached.
    pub xdp_mode: Option<ModeChoice>,
    /// Where the admin pages are served; `Some(None)`: nowhere.
    pub admin: Option<Option<SocketAddr>>,
    /// The control socket.
    pub socket: Option<PathBuf>,
    /// The directory of pins.
    pub pin_path: Option<PathBuf>,
}

/// Where the configuration comes from, at the start and at each reload.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) file: PathBuf,
    overrides: Overrides,
}

impl Source {
    /// Warns if the file can't be read, since some privileges were given up.
    pub(super) fn warn_if_unreadable(&self) {
        if let Err(error) = config::text_of(&self.file) {
            tracing::warn!(
                file = %self.file.display(),
                %error,
                "the configuration's file can't be read any longer, and so won't be applied again: it must be \
                 readable for the user that the controller runs as"
            );
        }
    }

    pub(super) fn read(&self) -> Result<Config, Invalid> {
        let mut config = Config::read_regular(&self.file)?;
        let overrides = self.overrides.clone();
        if !overrides.interfaces.is_empty() {
            config.interfaces = overrides.interfaces;
        }
        config.xdp_mode = overrides.xdp_mode.unwrap_or(config.xdp_mode);
        config.admin = overrides.admin.unwrap_or(config.admin);
        config.socket = overrides.socket.unwrap_or(config.socket);
        config.pin_path = overrides.pin_path.unwrap_or(config.pin_path);
        Ok(config)
    }
}

/// What is done with all the privileges that there are, before anything else runs.
pub struct Prepared {
    pub(super) source: Source,
    pub(super) config: Config,
    pub(super) pins: Pins,
    /// Whether nothing was pinned before.
    pub(super) is_new: bool,
    /// Keeps another controller away from the pins.
    pub(super) lock: Flock<File>,
    /// Where checks of direct return come from, if there are such.
    pub(super) vantage: Option<Vantage>,
    pub(super) journal: Journal,
    pub(super) log: Log,
}

/// Reads the configuration, begins to log, sees to the directories, and gives up every privilege that the controller
/// doesn't keep. The calling thread must be the only one.
///
/// # Errors
///
/// The configuration has a problem, or this host does.
pub fn prepare(file: PathBuf, overrides: Overrides) -> Result<Prepared, StartError> {
    let source = Source { file, overrides };
    let config = source.read()?;
    let journal = Journal::new();
    let log = Log::start(&config, journal.clone())
        .map_err(|source| StartError::System { what: "the log".to_owned(), source })?;
    preflight::check(&config)?;
    raise_open_files(&config)?;
    let pins = Pins::new(&config.pin_path);
    pins.create()?;
    let lock = lock(&pins)?;
    // Not before: another controller may just have been making them.
    let is_new = !pins.exist();
    match give_up(&config, &source.file, &pins) {
        Ok((pins, vantage)) => {
            Ok(Prepared { source, config, pins, is_new, lock, vantage, journal, log })
        }
        Err(error) => {
            if is_new {
                pins.remove_after_failure();
            }
            Err(error)
        }
    }
}

/// Lets this process have as many files open as it may: each check that is under way has one.
fn raise_open_files(config: &Config) -> Result<(), StartError> {
    /// For everything else, maps for the most part.
    const OTHERS: u64 = 128;
    let system =
        |errno: Errno| StartError::System { what: "open files".to_owned(), source: errno.into() };
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(system)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(system)?;
    let backends: usize = config.services.iter().map(|service| service.backends.len()).sum();
    if backends as u64 + OTHERS > most {
        tracing::warn!(
            most,
            backends,
            "checks may fail for lack of open files while many wait for an answer: raise their number (ulimit -Hn, \
             LimitNOFILE)"
        );
    }
    Ok(())
}

/// Sees to the directories, and gives up privileges. Returns how the pins are reached from then on.
fn give_up(
    config: &Config,
    file: &Path,
    pins: &Pins,
) -> Result<(Pins, Option<Vantage>), StartError> {
    let identity = config.user.as_deref().map(Identity::find).transpose()?;
    let run = config.socket.parent().filter(|run| !run.as_os_str().is_empty());
    let run = run.map_or_else(|| PathBuf::from("."), Path::to_path_buf);
    let makes_run = !run.exists();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&run)
        .map_err(|source| StartError::System { what: run.display().to_string(), source })?;
    let mut held = pins.clone();
    if let Some(identity) = &identity {
        identity.share(pins.root())?;
        if makes_run || run == Path::new(DEFAULT_RUN) {
            identity.share(&run)?;
        }
        held = pins.hold()?;
    } else {
        take_back(pins.root())?;
        if run == Path::new(DEFAULT_RUN) {
            take_back(&run)?;
        }
    }
    become_user(identity.as_ref(), needs_vantage(config))?;
    let vantage = needs_vantage(config).then(Vantage::new).transpose().map_err(|source| {
        let what = "a network namespace with a cable to it (veth), from which backends of direct return are checked \
                    (CAP_SYS_ADMIN)";
        StartError::System { what: what.to_owned(), source }
    })?;
    // What it is a link to may lie elsewhere.
    let target = fs::canonicalize(file).ok();
    let target = target.as_deref().and_then(Path::parent).map(Path::to_path_buf);
    let of_file = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let of_file = of_file.map_or_else(|| PathBuf::from("."), Path::to_path_buf);
    let around: Vec<PathBuf> =
        config.pin_path.parent().map(Path::to_path_buf).into_iter().collect();
    let emptied = if identity.is_none() { &around[..] } else { &[] };
    // It may be a link to what somebody else writes.
    let resolv_conf = fs::canonicalize("/etc/resolv.conf").ok();
    let names = resolv_conf.as_deref().and_then(Path::parent).map(Path::to_path_buf);
    let readable: Vec<PathBuf> = target.into_iter().chain(names).chain([of_file]).collect();
    confine(&[held.root().to_path_buf(), run], emptied, &readable)?;
    Ok((held, vantage))
}

/// Where the socket is by default. It is nobody else's.
const DEFAULT_RUN: &str = "/run/lb";

/// Keeps a second controller away from the same pins, for as long as the lock lives.
///
/// # Errors
///
/// One runs, or the directory of pins can't be opened.
pub fn lock(pins: &Pins) -> Result<Flock<File>, StartError> {
    let system = |source: io::Error| StartError::System {
        what: pins.directory().display().to_string(),
        source,
    };
    let directory = File::open(pins.directory()).map_err(system)?;
    Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        if error != Errno::EWOULDBLOCK {
            return system(error.into());
        }
        StartError::Running { path: pins.directory().to_path_buf(), pid: controller_pid(pins) }
    })
}

/// The process that holds the lock, or else the one that wrote the maps last; 0 where it isn't known.
fn controller_pid(pins: &Pins) -> u32 {
    let inode = pins.directory().metadata().map_or(0, |metadata| metadata.ino());
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    // As in "1: FLOCK ADVISORY WRITE 4765 00:1f:12345 0 EOF" (proc_locks(5)).
    let holder = locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (kind, process, file) = (fields.next()?, fields.nth(2)?, fields.next()?);
        let its_inode: u64 = file.rsplit(':').next()?.parse().ok()?;
        (kind == "FLOCK" && its_inode == inode).then(|| process.parse().ok())?
    });
    if let Some(holder) = holder.filter(|holder| *holder != 0) {
        return holder;
    }
    Maps::open(pins)
        .ok()
        .and_then(|maps| maps.settings.get(&0, 0).ok())
        .map_or(0, |settings| settings.controller)
}
