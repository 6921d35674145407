//! Setting the controller up, and taking it down.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use lb_common::abi::{self, pool_words};
use nix::fcntl::{Flock, FlockArg};
use sd_notify::NotifyState;
use tokio::sync::{mpsc, watch};

use super::{
    NAT_SOURCES, NETWORKS, SOURCES,
    checks::needs_vantage,
    configure::{NoRoom, Room},
    controller::{Controller, Event},
    interfaces::{self, Interfaces},
    plan::NoSpace,
    preflight, ring, service_manager,
    state::RingState,
    store,
    sweep::Sweeper,
    troubles::{Fullness, Troubles},
    watch::{watch_network, watch_path_mtus, watch_signals},
};
use crate::{
    admin::{self, Live},
    api,
    config::{Config, Invalid},
    confine::{ConfineError, Identity, become_user, confine},
    dataplane::{Capacity, DataplaneError, ModeChoice, Pins, load},
    journal::Journal,
    netlink::{NetlinkError, Network, Reader, Vantage},
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
    pub(super) fn read(&self) -> Result<Config, Invalid> {
        let mut config = Config::read(&self.file)?;
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

/// Why the controller doesn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error("{0}")]
    Config(#[from] Invalid),
    /// What the configuration asks for doesn't fit this host.
    #[error("{0}")]
    Unusable(String),
    /// This host.
    #[error("{0}")]
    Preflight(#[from] preflight::PreflightError),
    /// The program or its maps.
    #[error("{0}")]
    Dataplane(#[from] DataplaneError),
    /// The maps are too small.
    #[error("{0}")]
    NoRoom(#[from] NoRoom),
    /// Rings or pools of source ports don't fit.
    #[error("{0}")]
    NoSpace(#[from] NoSpace),
    /// Privileges that can't be given up.
    #[error("{0}")]
    Confine(#[from] ConfineError),
    /// The network.
    #[error("{0}")]
    Netlink(#[from] NetlinkError),
    /// Another controller.
    #[error("another controller runs on {path}, as process {pid}; stop that one first")]
    Running {
        /// The pins.
        path: PathBuf,
        /// Its process.
        pid: u32,
    },
    /// Something of the operating system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// What is done with all the privileges that there are, before anything else runs.
pub struct Prepared {
    source: Source,
    config: Config,
    pins: Pins,
    /// Whether nothing was pinned before.
    is_new: bool,
    /// Keeps another controller away from the pins.
    lock: Flock<fs::File>,
    vantage: Option<Vantage>,
}

/// Reads the configuration, which `start_log` is called with, sees to the directories, and gives up every privilege that
/// the controller doesn't keep. The calling thread must be the only one.
///
/// # Errors
///
/// The configuration has a problem, or this host does.
pub fn prepare(
    file: PathBuf,
    overrides: Overrides,
    start_log: impl FnOnce(&Config),
) -> Result<Prepared, StartError> {
    let source = Source { file, overrides };
    let config = source.read()?;
    start_log(&config);
    preflight::check(&config)?;
    let pins = Pins::new(&config.pin_path);
    let is_new = !pins.exist();
    pins.create()?;
    let lock = lock(&pins)?;
    match give_up(&config, &source.file, &pins) {
        Ok((held, vantage)) => Ok(Prepared { source, config, pins: held, is_new, lock, vantage }),
        Err(error) => {
            if is_new {
                pins.remove()?;
            }
            Err(error)
        }
    }
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
        identity.give(pins.root())?;
        if makes_run || run == Path::new(DEFAULT_RUN) {
            identity.give(&run)?;
        }
        held = pins.hold()?;
    }
    become_user(identity.as_ref(), needs_vantage(config))?;
    let vantage = needs_vantage(config).then(Vantage::new).transpose().map_err(|source| {
        let what = "a network namespace, from which backends of direct return are checked \
                    (CAP_SYS_ADMIN)";
        StartError::System { what: what.to_owned(), source }
    })?;
    let of_file = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let of_file = of_file.map_or_else(|| PathBuf::from("."), Path::to_path_buf);
    confine(&[config.pin_path.clone(), run], &[of_file])?;
    Ok((held, vantage))
}

/// Where the socket is by default. It is nobody else's.
const DEFAULT_RUN: &str = "/run/lb";

/// Runs the controller until SIGINT or SIGTERM. The data plane goes on without it, unless `detach_on_exit`. `journal` is
/// told to who asks for it.
///
/// # Errors
///
/// It can't start, or can't detach.
pub async fn run(
    prepared: Prepared,
    detach_on_exit: bool,
    journal: Journal,
) -> Result<(), StartError> {
    let Prepared { source, config, pins, is_new, lock, vantage } = prepared;
    let socket = config.socket.clone();
    let result = start(source, config, &pins, vantage, journal).await;
    let (controller, receiver) = match result {
        Ok(started) => started,
        Err(error) => {
            if is_new {
                // Nothing was forwarded before, and half a data plane is of no use.
                pins.remove()?;
            }
            return Err(error);
        }
    };
    service_manager::tell(&[NotifyState::Ready]);
    let controller = controller.run(receiver).await;
    service_manager::tell(&[NotifyState::Stopping]);
    if let Err(error) = fs::remove_file(&socket) {
        tracing::warn!(%error, socket = %socket.display(), "removing the control socket");
    }
    drop(controller);
    if detach_on_exit {
        pins.remove()?;
        tracing::info!("stopped, and detached");
    } else {
        tracing::info!("stopped; the data plane goes on, until `lb detach`");
    }
    drop(lock);
    Ok(())
}

/// Opens what may be in use, before anything is attached, and then sets the controller up.
async fn start(
    source: Source,
    config: Config,
    pins: &Pins,
    vantage: Option<Vantage>,
    journal: Journal,
) -> Result<(Controller, mpsc::Receiver<Event>), StartError> {
    let (calls, mut incoming) = mpsc::channel(64);
    let live = Live::new();
    if let Some(address) = config.admin {
        admin::serve(address, pins.clone(), calls.clone(), live.clone()).await.map_err(
            |source| StartError::System {
                what: format!("admin pages on {address} (admin = or --admin sets another address)"),
                source,
            },
        )?;
    }
    let socket = config.socket.clone();
    api::serve(&socket, calls, journal).map_err(|source| StartError::System {
        what: format!("control socket {}", socket.display()),
        source,
    })?;
    let (events, receiver) = mpsc::channel(1024);
    // A signal during the start is heard after it.
    watch_signals(&events)?;
    let controller =
        match assemble(source, config, pins.clone(), (live, vantage), events.clone()).await {
            Ok(controller) => controller,
            Err(error) => {
                // It was made above, and nobody is behind it.
                let _: io::Result<()> = fs::remove_file(&socket);
                return Err(error);
            }
        };
    let forward = events.clone();
    tokio::spawn(async move {
        while let Some(call) = incoming.recv().await {
            if forward.send(Event::Call(call)).await.is_err() {
                return;
            }
        }
    });
    watch_network(controller.addresses.subscribe(), events.clone());
    watch_path_mtus(&events);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        services = controller.config.services.len(),
        "ready"
    );
    Ok((controller, receiver))
}

/// Keeps a second controller away from the same pins, for as long as the lock lives.
fn lock(pins: &Pins) -> Result<Flock<fs::File>, StartError> {
    let system = |source: io::Error| StartError::System {
        what: pins.directory().display().to_string(),
        source,
    };
    let directory = fs::File::open(pins.directory()).map_err(system)?;
    Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        if error != nix::errno::Errno::EWOULDBLOCK {
            return system(error.into());
        }
        StartError::Running { path: pins.directory().to_path_buf(), pid: controller_pid(pins) }
    })
}

/// The process that wrote the maps last; 0 where it isn't known.
fn controller_pid(pins: &Pins) -> u32 {
    crate::dataplane::Maps::open(pins)
        .ok()
        .and_then(|maps| maps.settings.get(&0, 0).ok())
        .map_or(0, |settings| settings.controller)
}

/// Loads the program, brings the maps to what the configuration says, and attaches.
async fn assemble(
    source: Source,
    config: Config,
    pins: Pins,
    (live, vantage): (Live, Option<Vantage>),
    events: mpsc::Sender<Event>,
) -> Result<Controller, StartError> {
    let backends = config.services.iter().flat_map(|service| &service.backends);
    let addresses: Vec<_> = backends.map(|backend| backend.address.ip()).collect();
    let network = Reader::connect()?.read(addresses).await?;
    let (wanted, all) = interfaces::present(&config, &network, None);
    all.map_err(StartError::Unusable)?;

    let loaded = load(&pins, &capacity(&config))?;
    let (there, spaces) = store::observe(&loaded.maps)?;
    let room = Room {
        services: loaded.maps.service_info.len(),
        binds: loaded.maps.most_binds()?,
        backends: loaded.maps.backend_info.len(),
        networks: NETWORKS,
    };
    let mut state = there.configured(&config, room)?;
    state.settings.abi_version = abi::VERSION;
    state.settings.controller = std::process::id();
    if !there.backends.is_empty() {
        tracing::info!(backends = there.backends.len(), "took over the pinned maps");
    }

    let found = events.clone();
    let sweeper = Sweeper::start(&pins, move |result| {
        // Fails only while the controller stops.
        let _: Result<(), _> = found.blocking_send(Event::Swept(result));
    })?;
    let indices: Vec<u32> = wanted.iter().map(|(index, _)| *index).collect();
    let mut controller = Controller {
        source,
        config,
        pins,
        interfaces: Interfaces::default(),
        wanted: state,
        there,
        spaces,
        room,
        members: BTreeMap::new(),
        checkers: HashMap::new(),
        passage: None,
        idle_sweeps: HashMap::new(),
        path_mtu_times: HashMap::new(),
        addresses: watch::channel(Vec::new()).0,
        events,
        started: Instant::now(),
        troubles: Troubles::default(),
        live,
        fullness: Fullness::default(),
        file_watch: None,
        sweeper,
        orders: Arc::default(),
        network,
        loaded,
    };
    let config = controller.config.clone();
    controller.open_passage(&config, vantage)?;
    controller.wanted.apply_network(&config, &controller.network, &indices);
    // The maps first: a program that is attached finds them filled.
    controller.wanted.settle();
    controller.wanted.build_rings(&mut controller.members);
    controller.demand_room(&controller.wanted, &config)?;
    controller.reconcile().map_err(StartError::Unusable)?;
    controller.interfaces.attach(
        &mut controller.loaded,
        &controller.pins,
        &controller.config,
        &controller.network,
        &wanted,
    )?;
    controller.loaded.retire_earlier(&controller.pins)?;
    controller.interfaces.warn_of_detours(&controller.network, &Network::default());
    Ok(controller)
}

/// Room for twice what is configured, and for some more services and backends in any case.
fn capacity(config: &Config) -> Capacity {
    let double = |count: usize, least: u32| {
        u32::try_from(count * 2).unwrap_or(u32::MAX).next_power_of_two().max(least)
    };
    let count = |part: fn(&crate::config::Service) -> usize| -> usize {
        config.services.iter().map(part).sum()
    };
    let slots = count(|service| {
        let backends = service.backends.len();
        RingState::room_of(ring::size(backends) as usize, backends) as usize
    });
    let (first, last) = config.nat_ports;
    let sources = config.nat_addresses.len().max(1) as u32;
    let ports = (u32::from(last) - u32::from(first) + 1) * sources;
    let pools =
        count(|service| if service.forwarding.hides_client() { service.backends.len() } else { 0 });
    Capacity {
        flows: config.flows,
        embryonic: config.embryonic,
        services: double(config.services.len(), 256),
        binds: double(count(|service| service.binds.len()), 1024),
        backends: double(count(|service| service.backends.len()), 1024),
        // Twice again: while a ring is replaced, both are there.
        ring_slots: double(slots * 2, 1 << 20),
        nat_sources: NAT_SOURCES,
        port_words: double(pools * pool_words(ports) as usize, 1 << 16),
        networks: NETWORKS,
        clients: config.clients,
        sources: SOURCES,
    }
}
