//! The thread that looks through the tables of flows: it forgets those that have been idle for too long or
//! whose backend is down, wakes the clients of backends that are down, and sees to what packets alone can't
//! keep true.

mod affinity;
mod expiry;
mod loads;
mod ports;
mod wake;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use lb_common::{
    abi::{self, CHECK_SERVICE, Direction, Fate, Flow, FlowKey, Forwarding, ServiceInfo, Tick},
    datapath::Table,
    wire::Address,
};

use self::{affinity::Clients, loads::Loads, ports::PortAudit, wake::Waker};
use super::state::State;
use crate::dataplane::{self, DataplaneError, FamilyMaps, Maps, Pins, Shortcuts};

/// Least time between two rounds.
const INTERVAL: Duration = Duration::from_secs(5);
/// The same while a table of established flows is crowded, so that what is over makes room.
const CROWDED_INTERVAL: Duration = Duration::from_secs(1);
/// Least time between two rounds that only look for flows of backends that are down.
const URGENT_INTERVAL: Duration = Duration::from_millis(500);
/// A round takes at most this part of the time, as one in so many.
const SHARE: u32 = 40;
/// From so many percent of its room on, a table of established flows is crowded.
const CROWDED: u64 = 80;
/// It is so until there are fewer.
const ROOMY: u64 = 50;

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
    forwarding: Forwarding,
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
    /// Flows by direct return.
    pub(super) direct_flows: u32,
    /// Flows whose replies pass through us.
    pub(super) nat_flows: u32,
    /// Entries in each table, and how many there is room for.
    pub(super) usage: Vec<(&'static str, u32, u32)>,
}

impl Orders {
    pub(super) fn new(wanted: &State, there: &State) -> Self {
        let known = |(index, state): (&u32, &super::state::BackendState)| {
            let place = there.backends.get(index).filter(|there| there.has_pool());
            let pool = place.map(|there| {
                let backend = &there.backend;
                (backend.ports, backend.nat_source, backend.nat_sources.into())
            });
            let known = Known {
                service: state.info.service,
                forwarding: state.backend.forwarding,
                is_active: state.info.lifecycle == abi::Lifecycle::Active,
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

    /// Whether there are flows to be ended that `before` didn't know of.
    fn end_more_than(&self, before: &Self) -> bool {
        self.backends.iter().any(|(index, known)| {
            let before = before.backends.get(index).map_or(Fate::Keep, |known| known.fate);
            known.fate != Fate::Keep && known.fate != before
        })
    }

    /// Whether source ports lie elsewhere than `before`.
    fn have_other_pools(&self, before: &Self) -> bool {
        let pools = |orders: &Self| -> BTreeSet<_> {
            orders.backends.values().filter_map(|backend| backend.pool).collect()
        };
        self.ports != before.ports || pools(self) != pools(before)
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
                crowded: false,
                pause: INTERVAL,
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
    /// Whether a table was found to be nearly full.
    crowded: bool,
    /// Time between the newest round and the one before.
    pause: Duration,
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
                    let now = Instant::now();
                    if orders.end_more_than(&self.orders) {
                        urgent = Some(now);
                    }
                    if orders.have_other_pools(&self.orders) {
                        // Flows may have ports that are free in new ones.
                        due = now;
                    }
                    self.orders = orders;
                    continue;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            let start = Instant::now();
            self.waker.begin(&self.orders);
            let ended = if start >= due {
                let result = self.round().map(|(swept, ended)| (Some(swept), ended));
                let least = if self.crowded { CROWDED_INTERVAL } else { INTERVAL };
                self.pause = least.max(start.elapsed() * SHARE);
                due = start + self.pause;
                result
            } else {
                self.end_flows().map(|ended| (None, ended))
            };
            let ended = match ended {
                Ok((swept, ended)) => {
                    swept.into_iter().for_each(|swept| report(Ok(swept)));
                    ended
                }
                Err(error) => {
                    report(Err(error));
                    true
                }
            };
            let pause = URGENT_INTERVAL.max(start.elapsed() * SHARE);
            urgent = (ended && self.orders.are_urgent()).then(|| start + pause);
        }
    }

    /// Looks through everything. Returns what it found, and whether there were flows of backends that are down.
    fn round(&mut self) -> Result<(Swept, bool), DataplaneError> {
        let Self { maps, orders, crowded, pause, audit, .. } = self;
        let mut swept = Swept::default();
        audit.begin(orders);
        let now = dataplane::now();
        let pause = u32::try_from(pause.as_nanos() as u64 / Tick::NANOSECONDS).unwrap_or(u32::MAX);
        let (backends, services) = (orders.backends.keys(), orders.services.keys());
        let mut loads = Loads::begin(maps, backends.copied(), services.copied())?;
        let mut round = Round {
            orders,
            audit,
            swept: &mut swept,
            loads: &mut loads,
            now,
            pause,
            crowded: *crowded,
            shortcuts: &maps.shortcuts,
        };
        round.family(&mut maps.ipv4, ["established", "embryonic"])?;
        round.family(&mut maps.ipv6, ["established_ipv6", "embryonic_ipv6"])?;
        audit.end(&maps.ports);
        loads.end(maps)?;
        *crowded = is_crowded(&swept.usage, *crowded);
        let ended = self.end_flows()?;
        Ok((swept, ended))
    }

    /// Ends the flows of backends that are down. Returns whether there were any.
    fn end_flows(&mut self) -> Result<bool, DataplaneError> {
        let Self { maps, orders, waker, .. } = self;
        let shortcuts = &maps.shortcuts;
        let ipv4 = expiry::end_flows(&mut maps.ipv4, orders, waker, shortcuts)?;
        let ipv6 = expiry::end_flows(&mut maps.ipv6, orders, waker, shortcuts)?;
        Ok(ipv4 || ipv6)
    }
}

/// Whether a table of established flows is nearly full, or was and isn't half empty yet.
fn is_crowded(usage: &[(&str, u32, u32)], was_crowded: bool) -> bool {
    let limit = if was_crowded { ROOMY } else { CROWDED };
    usage.iter().any(|(table, used, room)| {
        table.starts_with("established") && u64::from(*used) * 100 >= u64::from(*room) * limit
    })
}

struct Round<'a> {
    orders: &'a Orders,
    audit: &'a mut PortAudit,
    swept: &'a mut Swept,
    loads: &'a mut Loads,
    now: Tick,
    /// Ticks between two rounds, as far as is known.
    pause: u32,
    crowded: bool,
    shortcuts: &'a Shortcuts,
}

impl Round<'_> {
    fn family<A: Address>(
        &mut self,
        maps: &mut FamilyMaps<A>,
        names: [&'static str; 2],
    ) -> Result<(), DataplaneError> {
        let mut clients = Clients::read(maps, self.orders, self.now, self.pause)?;
        for (table, name) in [Table::Established, Table::Embryonic].into_iter().zip(names) {
            let mut entries = 0;
            let mut expired: Vec<FlowKey<A>> = Vec::new();
            maps.for_each(table, |key, flow| {
                entries += 1;
                self.swept.backends_in_use.insert(flow.backend);
                self.audit.see(self.orders, key, flow);
                if table == Table::Established {
                    if flow.service != CHECK_SERVICE && flow.direction == Direction::ToBackend as u8
                    {
                        let flows = match flow.forwarding.sees_replies() {
                            true => &mut self.swept.nat_flows,
                            false => &mut self.swept.direct_flows,
                        };
                        *flows += 1;
                    }
                    clients.see(key, flow);
                }
                if expiry::is_over(self.orders, flow, self.now, self.crowded) {
                    expired.push(*key);
                } else {
                    self.loads.see(flow);
                }
            })?;
            self.swept.usage.push((name, entries, maps.room(table)?));
            let when = (self.now, self.crowded);
            self.swept.removed +=
                expiry::remove(maps, table, self.orders, &expired, when, self.shortcuts);
        }
        clients.write(maps, &mut self.swept.backends_in_use)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_crowded_from_four_fifths_until_half_of_it_is_free() {
        let table = |used| [("embryonic", 100, 100), ("established", used, 100)];
        for (used, was_crowded, is_it) in [
            (79, false, false),
            (80, false, true),
            (79, true, true),
            (50, true, true),
            (49, true, false),
        ] {
            assert_eq!(is_crowded(&table(used), was_crowded), is_it, "{used}, {was_crowded}");
        }
    }
}
