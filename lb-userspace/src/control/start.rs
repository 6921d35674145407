//! Setting the controller up, and taking it down.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use lb_common::{
    abi::{self, pool_words},
    datapath::trace_sets,
};
use sd_notify::NotifyState;
use tokio::sync::{mpsc, watch};

use super::{
    NAT_SOURCES, NETWORKS, SOURCES,
    configure::{NoRoom, Room},
    controller::{Controller, Event},
    cut_off::CutOff,
    interfaces::{self, Interfaces},
    names::Names,
    observe::Observed,
    plan::NoSpace,
    preflight::PreflightError,
    prepare::{Prepared, Source},
    read, ring, service_manager, shortcuts,
    state::RingState,
    sweep::Sweeper,
    troubles::{Fullness, Troubles},
    watch::{watch_network, watch_path_mtus, watch_signals},
};
use crate::{
    admin::{self, Live},
    api,
    config::{Config, Invalid},
    confine::ConfineError,
    dataplane::{self, Capacity, DataplaneError, Pins, load},
    journal::Journal,
    log::Log,
    netlink::{NetlinkError, Reader, Vantage, Wish},
};

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
    Preflight(#[from] PreflightError),
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
    /// The pins are of a balancer somewhere else.
    #[error(
        "the pins at {path} are of a balancer in another network namespace, net:[{namespace}], which still forwards there: set \
         another pin_path (--pin-path), or start lb in that namespace"
    )]
    OtherNamespace {
        /// The pins.
        path: PathBuf,
        /// The namespace.
        namespace: u32,
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

/// Runs the controller until SIGINT or SIGTERM. The data plane goes on without it, unless `detach_on_exit`.
///
/// # Errors
///
/// It can't start, or can't detach.
pub async fn run(prepared: Prepared, detach_on_exit: bool) -> Result<(), StartError> {
    let Prepared { source, config, pins, is_new, lock, vantage, journal, log } = prepared;
    let _written = log.leave_to_a_thread();
    let socket = config.socket.clone();
    let result = start(source, config, &pins, vantage, (journal, log)).await;
    let (controller, receiver) = match result {
        Ok(started) => started,
        Err(error) => {
            if is_new {
                // Nothing was forwarded before, and half a data plane is of no use.
                pins.remove_after_failure();
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
    let pinned = controller.demand_pins();
    drop(controller);
    match pinned {
        _ if detach_on_exit => {
            pins.remove()?;
            tracing::info!("stopped, and detached");
        }
        Ok(()) => tracing::info!("stopped; the data plane goes on, until `lb detach`"),
        Err(trouble) => tracing::error!("stopped; the data plane isn't whole: {trouble}"),
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
    (journal, log): (Journal, Log),
) -> Result<(Controller, mpsc::Receiver<Event>), StartError> {
    let (calls, mut incoming) = mpsc::channel(64);
    let live = Live::new(log.clone());
    if let Some(address) = config.admin {
        admin::serve(address, pins.clone(), calls.clone(), live.clone()).await.map_err(
            |source| StartError::System {
                what: format!("admin pages on {address} (admin = or --admin sets another address)"),
                source,
            },
        )?;
    }
    let socket = config.socket.clone();
    api::serve(&socket, calls, journal).map_err(|source| {
        let advice = match &config.user {
            Some(user) if source.kind() == io::ErrorKind::PermissionDenied => {
                format!(" ({user} must be allowed to write to its directory)")
            }
            _ => String::new(),
        };
        StartError::System { what: format!("control socket {}{advice}", socket.display()), source }
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
    watch_network(controller.wish.subscribe(), events.clone());
    watch_path_mtus(&events);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        services = controller.config.services.len(),
        "ready"
    );
    Ok((controller, receiver))
}

/// Demands that what is attached is attached here. Returns the number of this network namespace.
fn demand_namespace(pins: &Pins, before: u32) -> Result<u32, StartError> {
    let own = fs::metadata("/proc/self/ns/net").map_or(0, |metadata| metadata.ino() as u32);
    if [0, own].contains(&before) || own == 0 || !pins.are_attached() {
        return Ok(own);
    }
    Err(StartError::OtherNamespace { path: pins.root().to_path_buf(), namespace: before })
}

/// Loads the program, brings the maps to what the configuration says, and attaches.
async fn assemble(
    source: Source,
    mut config: Config,
    pins: Pins,
    (live, vantage): (Live, Option<Vantage>),
    events: mpsc::Sender<Event>,
) -> Result<Controller, StartError> {
    let backends = config.services.iter().flat_map(|service| &service.backends);
    let addresses: Vec<_> =
        backends.map(|backend| backend.address.ip()).filter(|ip| !ip.is_unspecified()).collect();
    let network = Reader::connect()?.read(addresses).await?;
    // What was chosen by the default route before is still the one, should there be none at the moment.
    let attached = pins.links().into_iter().map(|link| link.index);
    let chosen = attached.filter(|index| network.links.contains_key(index)).min();
    let (wanted, all) =
        interfaces::present(&config, &network, network.default_interface.or(chosen));
    if let Err(missing) = all {
        // What was served goes on being served; one that comes back is attached then.
        if wanted.is_empty() || !pins.exist() {
            return Err(StartError::Unusable(missing));
        }
        tracing::error!("{missing}");
    }

    let mut loaded = load(&pins, &capacity(&config))?;
    let (there, spaces) = read::observe(&loaded.maps)?;
    shortcuts::complete(&mut loaded.maps, &there)?;
    let room = Room {
        services: loaded.maps.service_info.len(),
        binds: loaded.maps.most_binds()?,
        backends: loaded.maps.backend_info.len(),
        networks: NETWORKS,
    };
    // They keep their addresses until the names are looked up.
    Names::default().resolve(&mut config, &there, None);
    let mut state = there.configured(&config, room)?;
    state.settings.abi_version = abi::VERSION;
    if state.settings.secret == 0 {
        state.settings.secret = fastrand::u64(1..);
        state.settings.trace_mask = trace_sets(0, 0) - 1;
        state.settings.nat_trace_mask = trace_sets(0, 0) - 1;
    }
    state.settings.beat_shift = dataplane::beat_shift();
    state.settings.controller = std::process::id();
    state.settings.namespace = demand_namespace(&pins, there.settings.namespace)?;
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
        started_checkers: 0,
        agents: HashMap::new(),
        observed: Observed::default(),
        cut_off: CutOff::default(),
        warming: BTreeMap::new(),
        rested: BTreeSet::new(),
        names: Names::default(),
        warming_timer: None,
        passage: None,
        idle_sweeps: HashMap::new(),
        path_mtu_times: HashMap::new(),
        wish: watch::channel(Wish::default()).0,
        events,
        started: Instant::now(),
        troubles: Troubles::default(),
        unchecked: BTreeMap::new(),
        lags: false,
        live,
        lost_lines: 0,
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
    controller.wanted.settle();
    controller.wanted.build_rings(&mut controller.members);
    controller.demand_room(&controller.wanted, &config)?;
    // Before anything is changed: where the program can't be attached, what is there goes on as it is. New maps are empty
    // for a moment, and what comes in passes.
    controller.interfaces.attach(
        &mut controller.loaded,
        &controller.pins,
        &controller.config,
        &controller.network,
        &wanted,
    )?;
    let was_forwarding = !controller.there.backends.is_empty();
    if let Err(error) = controller.reconcile() {
        // What was forwarded before goes on as far as it can, and what failed is tried again.
        if !was_forwarding {
            return Err(StartError::Unusable(error));
        }
    }
    controller.loaded.retire_earlier(&controller.pins);
    controller.interfaces.warn_of_detours(&controller.network);
    Interfaces::tell_of_addresses(&controller.config, &controller.network, None);
    controller.source.warn_if_unreadable();
    Ok(controller)
}

/// From so many pools of source ports on, there isn't room for as many again.
const MANY_POOLS: usize = 1000;

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
    // Of very many, only a quarter more: each takes 16 KB.
    let pools = pools + pools.min(MANY_POOLS).max(pools / 4);
    Capacity {
        flows: config.flows,
        embryonic: config.embryonic,
        services: double(config.services.len(), 256),
        binds: double(count(|service| service.binds.len()), 1024),
        backends: double(count(|service| service.backends.len()), 1024),
        // Twice again: while a ring is replaced, both are there.
        ring_slots: double(slots * 2, 1 << 20),
        nat_sources: NAT_SOURCES,
        port_words: u32::try_from(pools * pool_words(ports) as usize)
            .unwrap_or(u32::MAX)
            .max(1 << 16),
        networks: NETWORKS,
        clients: config.clients,
        sources: SOURCES,
    }
}
