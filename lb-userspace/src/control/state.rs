//! What the maps hold, as values: what is wanted, and what is there.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use lb_common::abi::{
    Access, Backend, BackendInfo, Balance, Fate, Forwarding, Lifecycle, LocalMac, OperatorState,
    Protocol, Ring, Service, ServiceInfo, Settings,
};

use super::ring::{self, Member};
use crate::config::{AllDown, Observe};

/// Everything that the controller writes into maps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// What holds for the whole data path.
    pub settings: Settings,
    /// Services in use, by index.
    pub services: BTreeMap<u32, ServiceInfo>,
    /// Backends in use, by index.
    pub backends: BTreeMap<u32, BackendState>,
    /// The service that is reached under an address and port. Its ring is only known of what is
    /// there, not of what is wanted.
    pub binds: BTreeMap<Bind, Service>,
    /// Rings by service.
    pub rings: BTreeMap<u32, RingState>,
    /// Addresses that full NAT sends from, by index.
    pub nat_sources: Vec<IpAddr>,
    /// Hardware addresses that are ours, and how long datagrams from there may be, in bytes.
    pub local_macs: BTreeMap<LocalMac, u32>,
    /// Lists of networks that may and may not connect, by their numbers.
    pub access: BTreeMap<u32, BTreeMap<IpNet, Access>>,
    /// Interfaces that frames may leave by.
    pub egress: BTreeSet<u32>,
    /// The interface by which checks at services' addresses come in. Only known of what is wanted.
    pub check_interface: Option<u32>,
    /// What holds for services that the packet path needn't know, by their index. Only known of what is wanted.
    pub policies: BTreeMap<u32, Policy>,
    /// Backends whose state is another's, by index. Only known of what is wanted.
    pub tracks: BTreeMap<u32, u32>,
    /// Backends that have a part of their share so far, in percent. Only known of what is wanted.
    pub warming: BTreeMap<u32, u32>,
    /// How long datagrams may be on the way to a backend, in bytes, as routers say. Only known of what
    /// is wanted; it comes out in [`Backend::longest`].
    pub path_mtus: BTreeMap<IpAddr, u16>,
}

/// What a ring is built of.
pub type Built = (Balance, Vec<Member>);

/// What holds for a service.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Policy {
    /// What becomes of new flows while no backend takes any.
    pub on_all_down: AllDown,
    /// How long a backend that came up again takes until it has its whole share.
    pub slow_start: Duration,
    /// When what clients see takes a backend down.
    pub observe: Option<Observe>,
}

/// What a service is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bind {
    /// The address and port that clients send to.
    pub address: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
}

/// One backend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BackendState {
    /// What the packet path knows.
    pub backend: Backend,
    /// What the CLI shows.
    pub info: BackendInfo,
}

/// One ring.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RingState {
    /// Backend indices; empty where no backend takes new flows.
    pub slots: Arc<Vec<u32>>,
    /// Those that stand in slots, each once.
    pub members: Arc<Vec<u32>>,
    /// Where they lie. Only known of what is there, not of what is wanted.
    pub ring: Ring,
}

impl RingState {
    /// Whether both have the same contents, wherever they lie.
    pub fn is_like(&self, other: &Self) -> bool {
        (Arc::ptr_eq(&self.slots, &other.slots) || self.slots == other.slots)
            && self.members == other.members
    }

    /// Slots that it takes in the map of all rings.
    pub fn room(&self) -> u32 {
        Self::room_of(self.slots.len(), self.members.len())
    }

    /// The same of any ring of so many slots with so many members, whose number stands before them.
    pub const fn room_of(slots: usize, members: usize) -> u32 {
        if slots == 0 { 0 } else { (slots + 1 + members) as u32 }
    }
}

impl BackendState {
    /// Its address and port.
    pub fn address(&self) -> SocketAddr {
        self.backend.socket_address()
    }

    /// Whether it has a pool of source ports.
    pub fn has_pool(&self) -> bool {
        self.backend.forwarding == Forwarding::FullNat && self.backend.nat_sources > 0
    }
}

/// Which of a service's backends are used: those that are up; else backups that are; else, where it is wanted, all.
#[derive(Clone, Copy, Default)]
struct Used {
    /// Whether there are some that are up, and backups that are.
    up: [bool; 2],
    /// Whether there are some that nobody has taken out, and such backups.
    wanted: [bool; 2],
    /// Whether all are used while none is up.
    keeps_all: bool,
}

impl Used {
    const fn kind(info: &BackendInfo) -> usize {
        (info.is_backup != 0) as usize
    }

    /// Whether a backend takes new flows.
    fn takes(&self, info: &BackendInfo) -> bool {
        let first = |kinds: [bool; 2]| kinds.iter().position(|is_there| *is_there);
        if let Some(used) = first(self.up) {
            return used == Self::kind(info) && info.takes_new_flows();
        }
        self.keeps_all && first(self.wanted) == Some(Self::kind(info)) && info.is_wanted()
    }
}

impl State {
    /// The index of a backend in the configuration, by the names of its service and its own.
    pub fn find_backend(&self, service: &str, backend: &str) -> Option<u32> {
        let service = self.find_service(service)?;
        let found = self.backends.iter().find(|(_, state)| {
            state.info.lifecycle == Lifecycle::Active
                && state.info.name.as_str() == backend
                && state.info.service == service
        });
        found.map(|(index, _)| *index)
    }

    /// A backend's name in the configuration, with its service's before it.
    pub(super) fn name_of(&self, index: u32) -> String {
        let Some(state) = self.backends.get(&index) else { return String::new() };
        let service = self.services.get(&state.info.service);
        let service = service.map_or("", |service| service.name.as_str());
        format!("{service}/{}", state.info.name.as_str())
    }

    /// How a service forwards to the backends that its ring leads to; `None`: to none.
    pub(super) fn forwarding(&self, service: u32) -> Option<Forwarding> {
        let first = self.rings.get(&service)?.members.first()?;
        Some(self.backends.get(first)?.backend.forwarding)
    }

    /// Where the rings lie that are written, or that packets are still led to.
    pub fn ring_offsets(&self) -> BTreeSet<u32> {
        let written = self.rings.values().map(|state| state.ring);
        let led_to = self.binds.values().map(|service| service.ring);
        let used = written.chain(led_to).filter(|ring| ring.size() > 0);
        used.map(Ring::offset).collect()
    }

    /// Where the pools of source ports lie.
    pub fn pool_offsets(&self) -> BTreeSet<u32> {
        let with_pool = self.backends.values().filter(|state| state.has_pool());
        with_pool.map(|state| state.backend.ports).collect()
    }

    /// Ports in the pool of a backend that has one.
    pub const fn pool_ports(&self, backend: &Backend) -> u32 {
        self.settings.nat_port_count * backend.nat_sources as u32
    }

    /// Lets the packet path know what the checks, operators and the configuration mean for flows.
    pub fn settle(&mut self) {
        self.follow_tracked();
        let used = self.used();
        let mut weights: HashMap<u32, u32> = HashMap::new();
        for (index, state) in &mut self.backends {
            let service = self.services.get(&state.info.service);
            let used = used.get(&state.info.service).copied().unwrap_or_default();
            let takes_new_flows = !state.address().ip().is_unspecified() && used.takes(&state.info);
            // Also one that is checked no longer, as in maintenance, was down by its last check. One that is used all the
            // same isn't.
            let is_down = state.info.is_down() && !takes_new_flows;
            let on_down = service.map_or(Fate::Keep, |service| service.on_down);
            state.backend.fate = if is_down { on_down } else { Fate::Keep };
            state.backend.is_down = is_down.into();
            state.backend.takes_new_flows = takes_new_flows.into();
            let percent = self.warming.get(index).copied().unwrap_or(100);
            let weight = if takes_new_flows { state.info.weight() * percent } else { 0 };
            state.backend.weight = u16::try_from(weight).unwrap_or(u16::MAX);
            state.backend.remembers_clients =
                service.is_some_and(|service| service.affinity > 0).into();
            *weights.entry(state.info.service).or_default() += u32::from(state.backend.weight);
        }
        for service in self.binds.values_mut() {
            service.weights = weights.get(&service.index).copied().unwrap_or(0);
        }
    }

    /// Gives backends that track others what those have, also what people say of them, as HAProxy does.
    fn follow_tracked(&mut self) {
        for (index, tracked) in &self.tracks {
            let known = self.backends.get(tracked).map(|state| state.info);
            if let Some((known, state)) = known.zip(self.backends.get_mut(index)) {
                state.info.result = known.result;
                state.info.agent = known.agent;
                state.info.agent_wish = match known.operator {
                    OperatorState::Ready => known.agent_wish,
                    said => said,
                };
                state.info.last_change = known.last_change;
            }
        }
    }

    /// Which backends of each service are used.
    fn used(&self) -> HashMap<u32, Used> {
        let mut services: HashMap<u32, Used> = HashMap::new();
        for state in self.backends.values() {
            let used = services.entry(state.info.service).or_default();
            let kind = Used::kind(&state.info);
            used.up[kind] |= state.info.takes_new_flows();
            used.wanted[kind] |= state.info.is_wanted();
        }
        for (index, used) in &mut services {
            let policy = self.policies.get(index).copied().unwrap_or_default();
            used.keeps_all = policy.on_all_down == AllDown::Keep;
        }
        services
    }

    /// Shares the rings that are the same with `there`, so that it is seen at once that they are.
    pub fn share_rings(&mut self, there: &Self) {
        for (service, ring) in &mut self.rings {
            let Some(known) = there.rings.get(service) else { continue };
            if !Arc::ptr_eq(&ring.slots, &known.slots) && ring.is_like(known) {
                ring.slots = Arc::clone(&known.slots);
                ring.members = Arc::clone(&known.members);
            }
        }
    }

    /// Builds the rings anew whose members have changed since `members` was filled.
    pub fn build_rings(&mut self, members: &mut BTreeMap<u32, Built>) {
        let mut now: BTreeMap<u32, Built> = BTreeMap::new();
        for (index, info) in &self.services {
            if info.lifecycle == Lifecycle::Active {
                now.insert(*index, (info.balance, Vec::new()));
            }
        }
        for (index, state) in &self.backends {
            if state.info.lifecycle != Lifecycle::Active {
                continue;
            }
            if let Some((_, members)) = now.get_mut(&state.info.service) {
                let percent = self.warming.get(index).copied();
                members.push(Member {
                    index: *index,
                    address: state.address(),
                    weight: state.info.weight(),
                    percent: percent.unwrap_or(100),
                    available: state.backend.takes_new_flows != 0,
                });
            }
        }
        self.rings.retain(|service, _| now.contains_key(service));
        for (service, of) in &now {
            if members.get(service) == Some(of) && self.rings.contains_key(service) {
                continue;
            }
            let (balance, wanted) = of;
            let size = ring::size(wanted.len());
            let slots = match *balance {
                Balance::RoundRobin => ring::order(wanted, size),
                _ => ring::build(wanted, size, self.settings.hash_seed),
            };
            let mut counts: HashMap<u32, u32> = HashMap::new();
            for slot in &slots {
                *counts.entry(*slot).or_default() += 1;
            }
            let mut in_ring = Vec::new();
            for member in wanted {
                let count = counts.get(&member.index).copied().unwrap_or(0);
                if count > 0 {
                    in_ring.push(member.index);
                }
                if let Some(state) = self.backends.get_mut(&member.index) {
                    state.info.ring_slots = count;
                }
            }
            let ring = RingState {
                slots: Arc::new(slots),
                members: Arc::new(in_ring),
                ring: Ring::default(),
            };
            self.rings.insert(*service, ring);
        }
        *members = now;
    }

    /// The index of a service in the configuration, by its name.
    pub(super) fn find_service(&self, name: &str) -> Option<u32> {
        let is_it =
            |info: &&ServiceInfo| info.lifecycle == Lifecycle::Active && info.name.as_str() == name;
        self.services.iter().find(|(_, info)| is_it(info)).map(|(index, _)| *index)
    }
}
