//! The one loop that events go through.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::wire::words;
use tokio::{
    sync::{mpsc, watch},
    time,
};

use super::{
    agents::Asked,
    checks::Checked,
    configure::Room,
    cut_off::CutOff,
    file_watch::FileWatch,
    interfaces::{self, Interfaces},
    names::{Names, Question},
    observe::Observed,
    path_mtu::PathMtu,
    plan::{NoSpace, Plan, Spaces, plan},
    prepare::Source,
    room,
    service_manager::Watchdog,
    state::{BackendState, Built, State},
    store,
    sweep::{Orders, Sweeper, Swept},
    troubles::{Fullness, Troubles},
};
use crate::{
    admin::Live,
    api::{Call, ControllerStatus, Request, Response},
    config::Config,
    dataplane::{DataplaneError, Loaded, Pins, XdpLink},
    health::{Passage, Report, Said, Task},
    netlink::{NetlinkError, Network, Reader, Wish},
};

/// Time between two looks for what is forgotten after a while.
const TIDY_INTERVAL: Duration = Duration::from_secs(5);

/// What happens within so long is handled together: with thousands of checks a second, each would wake the loop.
const GATHERING: Duration = Duration::from_millis(1);

/// Something that happened.
pub(super) enum Event {
    /// A backend was checked, by the checker of that number.
    Checked(u32, u64, Report),
    /// A backend's agent said something.
    AgentSaid(u32, Result<Said, String>),
    /// It's time to look at what clients' connections came to.
    Observe,
    /// It's time to give backends that warm up more.
    Warm,
    /// The network isn't what it was.
    Network(Network),
    /// A name was looked up.
    Named(Question, Result<BTreeSet<IpAddr>, String>),
    /// A router on the way to a backend said how much it takes.
    PathMtu(PathMtu),
    /// A client asks something.
    Call(Call),
    /// The tables of flows were looked through.
    Swept(Result<Swept, DataplaneError>),
    /// It's time to look for what is forgotten after a while.
    Tidy,
    /// SIGHUP.
    Reload,
    /// SIGINT or SIGTERM.
    Stop,
}

/// The controller.
pub(super) struct Controller {
    pub(super) source: Source,
    pub(super) config: Config,
    pub(super) loaded: Loaded,
    pub(super) pins: Pins,
    pub(super) network: Network,
    pub(super) interfaces: Interfaces,
    /// What is to be.
    pub(super) wanted: State,
    /// What the maps hold.
    pub(super) there: State,
    pub(super) spaces: Spaces,
    pub(super) room: Room,
    /// What the rings were built of.
    pub(super) members: BTreeMap<u32, Built>,
    pub(super) checkers: HashMap<u32, Checked>,
    /// Checkers that were started so far.
    pub(super) started_checkers: u64,
    pub(super) agents: HashMap<u32, Asked>,
    /// What clients' connections say of backends.
    pub(super) observed: Observed,
    /// Backends that there is no link to.
    pub(super) cut_off: CutOff,
    /// Since when backends warm up.
    pub(super) warming: BTreeMap<u32, time::Instant>,
    /// Backends that were taken out for maintenance, and wait for their next check.
    pub(super) rested: BTreeSet<u32>,
    /// Names of backends.
    pub(super) names: Names,
    /// Waits for the next step of those.
    pub(super) warming_timer: Option<Task>,
    /// What checks at services' addresses take, once there are such.
    pub(super) passage: Option<(Arc<Passage>, XdpLink)>,
    pub(super) idle_sweeps: HashMap<u32, u32>,
    /// When a router last said how much it takes, by the backend's address.
    pub(super) path_mtu_times: HashMap<IpAddr, Instant>,
    /// What is to be known of the network.
    pub(super) wish: watch::Sender<Wish>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) started: Instant,
    pub(super) troubles: Troubles,
    /// Backends that this host couldn't check lately.
    pub(super) unchecked: BTreeMap<u32, String>,
    /// Whether the maps aren't what is wanted, since something failed.
    pub(super) lags: bool,
    /// What is counted for the admin pages.
    pub(super) live: Live,
    /// Lines of the log that were lost when it was looked at last.
    pub(super) lost_lines: u64,
    pub(super) fullness: Fullness,
    /// While the file is watched.
    pub(super) file_watch: Option<FileWatch>,
    pub(super) sweeper: Sweeper,
    /// What the sweeper knows.
    pub(super) orders: Arc<Orders>,
}

impl Controller {
    /// Handles events until one of them is to stop.
    pub(super) async fn run(mut self, mut events: mpsc::Receiver<Event>) -> Self {
        self.follow_up();
        self.ask_names();
        self.watch_file();
        let ticks = self.events.clone();
        let mut watchdog = Watchdog::new();
        let tidy = watchdog.interval().map_or(TIDY_INTERVAL, |most| most.min(TIDY_INTERVAL));
        tokio::spawn(async move {
            let mut interval = time::interval_at(time::Instant::now() + tidy, tidy);
            interval.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
            loop {
                interval.tick().await;
                if ticks.send(Event::Tidy).await.is_err() {
                    return;
                }
            }
        });
        let mut batch = Vec::new();
        // Where much is to be compared, what comes in meanwhile is compared together: it takes a fifth of the time at most.
        let mut is_changed = false;
        let mut rested = time::Instant::now();
        loop {
            batch.clear();
            time::sleep(GATHERING).await;
            let received = events.recv_many(&mut batch, 1024);
            let count = if is_changed {
                time::timeout_at(rested, received).await.ok()
            } else {
                Some(received.await)
            };
            if count == Some(0) {
                return self;
            }
            for event in batch.drain(..) {
                if matches!(&event, Event::Reload | Event::Call((Request::Reload, _))) {
                    self.look_at_interfaces().await;
                }
                match event {
                    Event::Checked(index, checker, report) => {
                        is_changed |= self.record(index, checker, &report);
                    }
                    Event::AgentSaid(index, said) => is_changed |= self.take_in_agent(index, said),
                    Event::Observe => is_changed |= self.observe(),
                    Event::Warm => {
                        self.warm();
                        is_changed = true;
                    }
                    Event::Network(network) => {
                        self.take_in(network);
                        is_changed = true;
                    }
                    Event::Named(question, result) => {
                        is_changed |= self.take_in_name(question, result);
                    }
                    Event::PathMtu(path_mtu) => is_changed |= self.learn_path_mtu(path_mtu),
                    // Who asked has given up.
                    Event::Call((_, answer)) if answer.is_closed() => {}
                    Event::Call((request, answer)) => {
                        let response = self.answer(request);
                        // A client that hung up doesn't care.
                        let _: Result<(), Response> = answer.send(response);
                    }
                    Event::Tidy => is_changed |= self.tidy() || self.lags,
                    Event::Swept(result) => is_changed |= self.take_in_sweep(result),
                    // What comes of it is logged.
                    Event::Reload => drop(self.reload_counted()),
                    Event::Stop => {
                        // The data plane goes on with what it is told now.
                        if is_changed {
                            let _: Result<(), String> = self.reconcile();
                        }
                        return self;
                    }
                }
            }
            watchdog.turn();
            let start = time::Instant::now();
            if is_changed && start >= rested {
                // What fails is logged there.
                let _: Result<(), String> = self.reconcile();
                is_changed = false;
                rested = time::Instant::now() + 4 * start.elapsed();
            }
        }
    }

    /// Makes the maps what is wanted. What fails is logged, and tried again soon.
    ///
    /// # Errors
    ///
    /// Something failed.
    pub(super) fn reconcile(&mut self) -> Result<(), String> {
        self.wanted.settle();
        self.wanted.build_rings(&mut self.members);
        self.bring_about()
    }

    /// Makes the maps what is wanted, which is settled and has its rings.
    ///
    /// # Errors
    ///
    /// Something failed.
    pub(super) fn bring_about(&mut self) -> Result<(), String> {
        self.wanted.share_rings(&self.there);
        let now = Instant::now();
        let Plan { changes, shortage } = plan(&self.wanted, &self.there, &mut self.spaces, now);
        let applied = changes
            .iter()
            .try_for_each(|change| store::apply(change, &mut self.loaded.maps, &mut self.there))
            .map_err(|error| format!("a change failed, and is tried again: {error}"));
        let result = match shortage {
            Some(shortage) if applied.is_ok() => Err(shortage.to_string()),
            _ => applied,
        };
        self.spaces.keep(&self.there, now);
        self.troubles.note("reconcile", result.clone());
        self.lags = result.is_err();
        self.tell_of_outages();
        let orders = Orders::new(&self.wanted, &self.there);
        if *self.orders != orders {
            self.orders = Arc::new(orders);
            self.sweeper.order(Arc::clone(&self.orders));
        }
        result
    }

    /// Demands that rings and pools of a state which has its rings find a place, also those of backends that aren't
    /// reached yet.
    ///
    /// # Errors
    ///
    /// One doesn't.
    pub(super) fn demand_room(&self, wanted: &State, config: &Config) -> Result<(), NoSpace> {
        let sources = config.nat_addresses.len().max(1) as u32;
        let (there, spaces) = (&self.there, self.spaces.clone());
        room::demand_entries(wanted, there, &self.room)?;
        room::shortage(wanted, there, spaces, Instant::now(), sources).map_or(Ok(()), Err)
    }

    /// Takes in what the network looks like now.
    fn take_in(&mut self, network: Network) {
        for (address, hop) in &network.next_hops {
            if self.network.next_hops.get(address) == Some(hop) {
                continue;
            }
            let told = |why| format!("{address} is not reachable: {why}");
            let result = hop.as_ref().map(drop).map_err(told);
            self.troubles.note(format!("reach {address}"), result);
        }
        let before = std::mem::replace(&mut self.network, network);
        let result = self.attach_present();
        self.troubles.note("interfaces", result);
        self.interfaces.warn_of_detours(&self.network);
        self.cut_off.take_in(&self.wanted, &self.network, &mut self.troubles);
        Interfaces::tell_of_addresses(&self.config, &self.network, Some(&before));
        self.apply_network();
        self.follow_up();
        let result = self.wanted.demand_direct_reach(&self.network);
        self.troubles.note("dsr", result);
    }

    /// Looks at the interfaces that there are, and their addresses: news of one that has just come may still be on its
    /// way.
    async fn look_at_interfaces(&mut self) {
        let look = async {
            let reader = Reader::connect()?;
            Ok::<_, NetlinkError>((reader.links().await?, reader.addresses().await?))
        };
        match look.await {
            Ok((links, addresses)) => {
                if (&self.network.links, &self.network.addresses) == (&links, &addresses) {
                    return;
                }
                self.network.links = links;
                self.network.addresses = addresses;
                // Who watches may never have seen that, and would take it for nothing new if it were gone again.
                self.wish.send_modify(|wish| wish.asked += 1);
            }
            // What is known will do.
            Err(error) => tracing::warn!(%error, "looking at the interfaces"),
        }
    }

    /// Takes in what a router on the way to a backend said. Returns whether that is new.
    fn learn_path_mtu(&mut self, path_mtu: PathMtu) -> bool {
        let PathMtu { source, destination, mtu } = path_mtu;
        let is_meant = |state: &BackendState| {
            state.backend.forwarding.encapsulates()
                && state.address().ip() == destination
                && state.backend.outer_source == words(source)
        };
        if !self.wanted.backends.values().any(is_meant) {
            return false;
        }
        self.path_mtu_times.insert(destination, Instant::now());
        let is_new = self.wanted.path_mtus.insert(destination, mtu) != Some(mtu);
        if is_new {
            tracing::info!(backend = %destination, mtu, "a router on the way takes no more");
            self.apply_network();
        }
        is_new
    }

    pub(super) fn apply_network(&mut self) {
        let attached = self.interfaces.indices();
        self.wanted.apply_network(&self.config, &self.network, &attached);
    }

    /// The interfaces that a configuration means, as [`interfaces::present`]. What was chosen by
    /// the default route stays: another one, such as a VPN's, moves nothing.
    pub(super) fn wanted_interfaces(
        &self,
        config: &Config,
    ) -> (Vec<(u32, String)>, Result<(), String>) {
        let by_default = self.config.interfaces.is_empty();
        let chosen = self.interfaces.first(&self.network).filter(|_| by_default);
        interfaces::present(config, &self.network, chosen)
    }

    /// Attaches the program to those of the wanted interfaces that there are, and to no others.
    pub(super) fn attach_present(&mut self) -> Result<(), String> {
        let (present, all) = self.wanted_interfaces(&self.config);
        // A default route that goes for a moment doesn't end forwarding.
        if !present.is_empty() || !self.config.interfaces.is_empty() {
            let (loaded, network) = (&mut self.loaded, &self.network);
            self.interfaces
                .attach(loaded, &self.pins, &self.config, network, &present)
                .map_err(|error| error.to_string())?;
        }
        all
    }

    /// Watches the configuration's file, or doesn't, as it says itself.
    pub(super) fn watch_file(&mut self) {
        if !self.config.watch {
            self.file_watch = None;
        } else if self.file_watch.is_none() {
            match FileWatch::start(&self.source.file, &self.config.text, self.events.clone()) {
                Ok(watch) => self.file_watch = Some(watch),
                Err(error) => tracing::error!(%error, "the configuration's file can't be watched"),
            }
        }
    }

    fn answer(&mut self, request: Request) -> Response {
        match request {
            Request::Status => Response::Status(ControllerStatus {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                uptime_s: self.started.elapsed().as_secs(),
                config: self.source.file.display().to_string(),
                interfaces: self.interfaces.status(&self.config, &self.network),
            }),
            Request::Reload => self.reload_counted(),
            Request::Config => Response::Config(self.config.text.to_string()),
            Request::Operate { service, backend, operation } => {
                self.operate(&service, &backend, operation)
            }
            Request::Events { .. } => Response::Refused("the socket tells events".to_owned()),
        }
    }
}
