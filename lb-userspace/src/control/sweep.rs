//! The thread that looks through the tables of flows: it forgets those that have been idle for too long or
//! whose backend is down, wakes the clients of backends that are down, and sees to what packets alone can't
//! keep true.

mod affinity;
mod expiry;
mod ports;
mod wake;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use lb_common::{
    abi::{CHECK_SERVICE, Fate, Flow, FlowKey, ServiceInfo, Tick},
    datapath::Table,
    wire::Address,
};

use self::{affinity::Clients, ports::PortAudit, wake::Waker};
use super::state::State;
use crate::dataplane::{self, DataplaneError, FamilyMaps, Maps, Pins};

/// Least time between two rounds.
const INTERVAL: Duration = Duration::from_secs(5);
/// Least time between two rounds that only look for flows of backends that are down.
const URGENT_INTERVAL: Duration = Duration::from_millis(500);
/// A round takes at most this part of the time, as one in so many.
const SHARE: u32 = 40;

/// What the thread has to know of the state that is wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Orders {
    /// Services, by index.
    services: BTreeMap<u32, ServiceInfo>,
    /// Backends, by index.
    backends: BTreeMap<u32, Known>,
    /// First port that full NAT sends from, and how many there are.
    ports: (u32, u32),
}

/// What it has to know of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    service: u32,
    is_active: bool,
    fate: Fate,
    /// Pool of source ports, and the first and the number of addresses that it is for.
    pool: Option<(u32, u32, u32)>,
}

/// What a round found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Swept {
    /// Entries removed; a flow has one for each direction.
    pub(super) removed: usize,
    /// Backends that flows or clients with affinity name.
    pub(super) backends_in_use: BTreeSet<u32>,
    /// Entries in each table, and how many there is room for.
    pub(super) usage: Vec<(&'static str, u32, u32)>,
}

impl Orders {
    pub(super) fn new(wanted: &State, there: &State) -> Self {
        let known = |(index, state): (&u32, &super::state::BackendState)| {
            let place = there.backends.get(index).filter(|there| there.has_pool());
            let pool = place.map(|there| {
                let backend = &there.backend;
                (backend.ports, backend.nat_source, backend.nat_sources)
            });
            let known = Known {
                service: state.info.service,
                is_active: state.info.lifecycle == lb_common::abi::Lifecycle::Active,
                fate: state.backend.fate,
                pool,
            };
            (*index, known)
        };
        Self {
            services: there.services.clone(),
            backends: wanted.backends.iter().map(known).collect(),
            ports: (there.settings.nat_port_first, there.settings.nat_port_count),
        }
    }

    /// Whether a backend is down whose flows don't just go on.
    fn are_urgent(&self) -> bool {
        self.backends.values().any(|backend| backend.fate != Fate::Keep)
    }

    fn fate<A: Address>(&self, flow: &Flow<A>) -> Fate {
        match self.backends.get(&flow.backend) {
            Some(backend) if flow.service != CHECK_SERVICE => backend.fate,
            _ => Fate::Keep,
        }
    }
}

/// The thread. It ends when this is dropped.
pub(super) struct Sweeper(mpsc::Sender<Arc<Orders>>);

impl Sweeper {
    /// Starts it. `report` gets what each round found.
    ///
    /// # Errors
    ///
    /// The maps can't be opened.
    pub(super) fn start(
        pins: &Pins,
        mut report: impl FnMut(Result<Swept, DataplaneError>) + Send + 'static,
    ) -> Result<Self, DataplaneError> {
        let maps = Maps::open(pins)?;
        let (sender, receiver) = mpsc::channel();
        let work = move || {
            let mut thread = Thread {
                maps,
                orders: Arc::default(),
                audit: PortAudit::default(),
                waker: Waker::default(),
            };
            thread.run(&receiver, &mut report);
        };
        let started = thread::Builder::new().name("sweep".to_owned()).spawn(work);
        started.map_err(DataplaneError::system("a thread"))?;
        Ok(Self(sender))
    }

    /// Lets it know what is wanted by now.
    pub(super) fn order(&self, orders: Arc<Orders>) {
        // It has ended only where it panicked, which was logged.
        let _: Result<(), mpsc::SendError<_>> = self.0.send(orders);
    }
}

struct Thread {
    maps: Maps,
    orders: Arc<Orders>,
    audit: PortAudit,
    waker: Waker,
}

impl Thread {
    fn run(
        &mut self,
        orders: &mpsc::Receiver<Arc<Orders>>,
        report: &mut impl FnMut(Result<Swept, DataplaneError>),
    ) {
        // Without orders, everything would look unknown.
        let Ok(first) = orders.recv() else { return };
        self.orders = first;
        let mut due = Instant::now();
        let mut urgent = self.orders.are_urgent().then_some(due);
        loop {
            let next = urgent.map_or(due, |urgent| urgent.min(due));
            match orders.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(orders) => {
                    self.orders = orders;
                    let now = Instant::now();
                    urgent = self.orders.are_urgent().then(|| urgent.unwrap_or(now));
                    continue;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            let start = Instant::now();
            if start >= due {
                report(self.round());
                due = start + INTERVAL.max(start.elapsed() * SHARE);
            } else if let Err(error) = self.end_flows() {
                report(Err(error));
            }
            let pause = URGENT_INTERVAL.max(start.elapsed() * SHARE);
            urgent = self.orders.are_urgent().then(|| start + pause);
        }
    }

    /// Looks through everything.
    fn round(&mut self) -> Result<Swept, DataplaneError> {
        let Self { maps, orders, audit, waker } = self;
        let mut swept = Swept::default();
        audit.begin(orders);
        let mut round = Round { orders, audit, waker, swept: &mut swept, now: dataplane::now() };
        round.family(&mut maps.ipv4, ["established", "embryonic"])?;
        round.family(&mut maps.ipv6, ["established_ipv6", "embryonic_ipv6"])?;
        audit.end(&maps.ports);
        Ok(swept)
    }

    /// Looks for flows of backends that are down, and for nothing else.
    fn end_flows(&mut self) -> Result<(), DataplaneError> {
        let Self { maps, orders, waker, .. } = self;
        expiry::end_flows(&mut maps.ipv4, orders, waker)?;
        expiry::end_flows(&mut maps.ipv6, orders, waker)
    }
}

struct Round<'a> {
    orders: &'a Orders,
    audit: &'a mut PortAudit,
    waker: &'a mut Waker,
    swept: &'a mut Swept,
    now: Tick,
}

impl Round<'_> {
    fn family<A: Address>(
        &mut self,
        maps: &mut FamilyMaps<A>,
        names: [&'static str; 2],
    ) -> Result<(), DataplaneError> {
        let mut clients = Clients::read(maps, self.orders, self.now)?;
        for (table, name) in [Table::Established, Table::Embryonic].into_iter().zip(names) {
            let mut entries = 0;
            let mut expired: Vec<FlowKey<A>> = Vec::new();
            maps.for_each(table, |key, flow| {
                entries += 1;
                self.swept.backends_in_use.insert(flow.backend);
                self.audit.see(self.orders, key, flow);
                if table == Table::Established {
                    clients.see(key, flow);
                }
                if expiry::is_over(self.orders, flow, self.now) {
                    expired.push(*key);
                }
            })?;
            self.swept.usage.push((name, entries, maps.room(table)?));
            self.swept.removed += expiry::remove(maps, table, self.orders, &expired, self.now);
        }
        clients.write(maps, &mut self.swept.backends_in_use)?;
        expiry::end_flows(maps, self.orders, self.waker)
    }
}
