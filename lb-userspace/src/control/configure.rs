//! From a configuration to the state that it asks for, keeping what need not change.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
};

use ipnet::IpNet;
use lb_common::{
    abi::{
        Access, AddressFamily, Backend, BackendInfo, CheckKind, CheckResult, Forwarding, Lifecycle,
        OperatorState, ServiceInfo, Text,
    },
    wire::{NetworkU16, words},
};

use super::state::{BackendState, Policy, State};
use crate::config::{self, Config};

const NANOSECONDS_A_SECOND: u32 = 1_000_000_000;

/// There is no room for what a configuration asks for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "no room for another {what}: the maps were made for {room}; to make larger ones, stop the \
     controller, run `lb detach` and start it again"
)]
pub struct NoRoom {
    what: &'static str,
    room: u32,
}

/// How much the maps have room for.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Services.
    pub services: u32,
    /// Addresses, ports and protocols.
    pub binds: u32,
    /// Backends, with index 0, which isn't one.
    pub backends: u32,
    /// Networks in the lists of who may connect.
    pub networks: u32,
}

impl State {
    /// The state that `config` asks for, but for what depends on the network:
    /// [`Self::apply_network`] adds that.
    ///
    /// A service keeps its index by its name, and a backend its own by service, name and address;
    /// with it come counters, check results and what an operator said. What isn't configured any
    /// longer is retired: it gets no new flows, and its index is free once no flow names it.
    ///
    /// # Errors
    ///
    /// The maps are too small.
    pub fn configured(&self, config: &Config, room: Room) -> Result<Self, NoRoom> {
        let mut state = self.clone();
        state.settings.hash_seed = config.hash_seed;
        let (first, last) = config.nat_ports;
        state.settings.nat_port_first = u32::from(first);
        state.settings.nat_port_count = u32::from(last) - u32::from(first) + 1;
        state.settings.syn_interval =
            config.syn_rate_per_source.map_or(0, |rate| NANOSECONDS_A_SECOND / rate);
        for info in state.services.values_mut() {
            info.lifecycle = Lifecycle::Retired;
        }

        let answers_to_client = |service: &config::Service| service.forwarding == Forwarding::Nat;
        state.settings.replies_anywhere = config.services.iter().any(answers_to_client).into();

        let mut places = Places::new(self);
        let mut kept = vec![false; room.backends as usize];
        state.policies.clear();
        let mut tracking = Vec::new();
        let has_track = |service: &config::Service| {
            service.backends.iter().any(|backend| backend.track.is_some())
        };
        let are_tracked = config.services.iter().any(has_track);
        let mut by_name = HashMap::new();
        for service in &config.services {
            let index = state.place_service(service, &mut places, room)?;
            let policy = Policy {
                on_all_down: service.on_all_down,
                slow_start: service.slow_start,
                observe: service.check.observe,
            };
            state.policies.insert(index, policy);
            for backend in &service.backends {
                let placed = state.place_backend(index, service, backend, &mut places, room)?;
                kept[placed as usize] = true;
                if are_tracked {
                    by_name.insert((service.name.as_str(), backend.name.as_str()), placed);
                    tracking.extend(backend.track.as_ref().map(|tracked| (placed, tracked)));
                }
            }
        }
        let found = |(index, tracked): (u32, &config::Tracked)| {
            Some((index, *by_name.get(&(tracked.service.as_str(), tracked.backend.as_str()))?))
        };
        state.tracks = tracking.into_iter().filter_map(found).collect();
        let is_kept = |index: &u32| kept.get(*index as usize).copied().unwrap_or(false);
        state.warming.retain(|index, _| is_kept(index));
        if config.services.iter().map(|service| service.binds.len()).sum::<usize>()
            > room.binds as usize
        {
            return Err(NoRoom { what: "address that services are bound to", room: room.binds });
        }
        for (index, backend) in &mut state.backends {
            if !is_kept(index) {
                backend.info.lifecycle = Lifecycle::Retired;
                backend.info.detail = Text::new("no longer configured");
                backend.info.ring_slots = 0;
            }
        }
        // Where nothing was ever sent, nothing is left.
        state.backends.retain(|_, state| {
            state.info.lifecycle != Lifecycle::Retired || !state.address().ip().is_unspecified()
        });
        let in_use = |number: &u32| state.services.values().any(|info| info.access == *number);
        state.access.retain(|number, _| in_use(number));
        if state.access.values().map(BTreeMap::len).sum::<usize>() > room.networks as usize {
            return Err(NoRoom {
                what: "network that may or may not connect",
                room: room.networks,
            });
        }
        Ok(state)
    }

    /// The number of a list of networks: the same as long as the list is, so that a changed one is there
    /// whole before it is asked.
    fn place_access(&mut self, networks: &BTreeMap<IpNet, Access>) -> u32 {
        if networks.is_empty() {
            return 0;
        }
        if let Some((number, _)) = self.access.iter().find(|(_, known)| *known == networks) {
            return *number;
        }
        let number = self.access.keys().next_back().map_or(1, |last| last + 1);
        self.access.insert(number, networks.clone());
        number
    }

    fn place_service(
        &mut self,
        service: &config::Service,
        places: &mut Places<'_>,
        room: Room,
    ) -> Result<u32, NoRoom> {
        let seconds = |duration: std::time::Duration| {
            u32::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
        };
        let timeouts = &service.timeouts;
        let info = ServiceInfo {
            name: Text::new(&service.name),
            lifecycle: Lifecycle::Active,
            forwarding: service.forwarding,
            protocol: service.protocol,
            on_down: service.on_down,
            balance: service.balance,
            padding: [0; 3],
            access: self.place_access(&service.access),
            affinity: service.affinity.map_or(0, seconds),
            timeouts: [timeouts.syn, timeouts.established, timeouts.closing, timeouts.udp]
                .map(seconds),
        };
        let index = match places.services.get(service.name.as_str()) {
            Some(index) => *index,
            None => (places.free_service..room.services)
                .find(|index| !self.services.contains_key(index))
                .ok_or(NoRoom { what: "service", room: room.services })
                .inspect(|index| places.free_service = *index + 1)?,
        };
        self.services.insert(index, info);
        Ok(index)
    }

    fn place_backend(
        &mut self,
        service: u32,
        configured: &config::Service,
        backend: &config::Backend,
        places: &mut Places<'_>,
        room: Room,
    ) -> Result<u32, NoRoom> {
        let name = Text::new(&backend.name);
        let check = match configured.check.kind {
            _ if backend.track.is_some() => CheckKind::Track,
            config::CheckKind::None => CheckKind::None,
            config::CheckKind::Tcp(_) => CheckKind::Tcp,
            config::CheckKind::Http(_) if configured.check.tls.is_some() => CheckKind::Https,
            config::CheckKind::Http(_) => CheckKind::Http,
        };
        let known = places.backends.get(&(service, name.as_str(), backend.address));
        let index = match known {
            Some(index) => *index,
            None => (places.free_backend..room.backends)
                .find(|index| !self.backends.contains_key(index))
                .ok_or(NoRoom { what: "backend", room: room.backends - 1 })
                .inspect(|index| places.free_backend = *index + 1)?,
        };
        let state = self.backends.entry(index).or_insert_with(|| {
            let mut state = new_backend(service, name, backend.address);
            // What an operator said of the one before, which had another address, was meant for the name.
            if let Some((operator, weight)) = places.said.get(&(service, name.as_str())) {
                state.info.operator = *operator;
                state.info.operator_weight = *weight;
            }
            state
        });
        if state.info.lifecycle == Lifecycle::Retired {
            state.info.forget_runtime();
        }
        state.info.lifecycle = Lifecycle::Active;
        state.backend.forwarding = configured.forwarding;
        state.backend.maximum_segment = configured.maximum_segment.unwrap_or(0);
        state.info.configured_weight = u32::from(backend.weight);
        if state.info.check != check {
            // What is known of it holds until the new check has another opinion.
            state.info.check = check;
            state.info.detail = Text::new(NOT_CHECKED);
        }
        state.info.is_backup = backend.backup.into();
        if configured.check.agent.is_none() && check != CheckKind::Track {
            state.info.forget_agent();
        }
        if check == CheckKind::None {
            state.info.result = CheckResult::Up;
            state.info.detail = Text::new("not checked");
        }
        if state.address().ip().is_unspecified() {
            state.info.result = CheckResult::Down;
            if ["", NOT_CHECKED].contains(&state.info.detail.as_str()) {
                let host = backend.host.as_deref().unwrap_or_default();
                state.info.detail = Text::new(&format!("{host} isn't looked up yet"));
            }
        } else if let Some(tracked) = &backend.track {
            state.info.detail = Text::new(&format!("as {tracked}"));
            state.info.check_microseconds = 0;
        }
        Ok(index)
    }
}

/// What is said of a backend before its first check.
const NOT_CHECKED: &str = "not checked yet";

/// Which index is whose.
struct Places<'a> {
    /// By name.
    services: HashMap<&'a str, u32>,
    /// By service, name and address.
    backends: HashMap<(u32, &'a str, SocketAddr), u32>,
    /// What an operator has said, by service and name.
    said: HashMap<(u32, &'a str), (OperatorState, u32)>,
    /// No index below is free.
    free_service: u32,
    /// No index below is free.
    free_backend: u32,
}

impl<'a> Places<'a> {
    fn new(state: &'a State) -> Self {
        let service = |(index, info): (&u32, &'a ServiceInfo)| (info.name.as_str(), *index);
        let backend = |(index, state): (&u32, &'a BackendState)| {
            ((state.info.service, state.info.name.as_str(), state.address()), *index)
        };
        Self {
            services: state.services.iter().map(service).collect(),
            backends: state.backends.iter().map(backend).collect(),
            said: state
                .backends
                .values()
                .filter(|state| {
                    let info = &state.info;
                    let is_said =
                        info.operator != OperatorState::Ready || info.operator_weight != 0;
                    is_said && info.lifecycle == Lifecycle::Active
                })
                .map(|state| {
                    let info = &state.info;
                    let name = (info.service, info.name.as_str());
                    (name, (info.operator, info.operator_weight))
                })
                .collect(),
            free_service: 0,
            // Index 0 stands for no backend.
            free_backend: 1,
        }
    }
}

/// What a backend that came back into the configuration doesn't keep from before.
trait ForgetRuntime {
    fn forget_runtime(&mut self);

    /// What its agent has said.
    fn forget_agent(&mut self);
}

impl ForgetRuntime for BackendInfo {
    fn forget_runtime(&mut self) {
        self.operator = OperatorState::Ready;
        self.operator_weight = 0;
        self.result = CheckResult::Unknown;
        self.detail = Text::new("");
        self.forget_agent();
    }

    fn forget_agent(&mut self) {
        self.agent = CheckResult::Unknown;
        self.agent_wish = OperatorState::Ready;
        self.agent_percent = 0;
        self.agent_reason = Text::new("");
    }
}

fn new_backend(service: u32, name: Text<64>, address: SocketAddr) -> BackendState {
    let mut info: BackendInfo = bytemuck::Zeroable::zeroed();
    info.name = name;
    info.service = service;
    BackendState {
        backend: Backend {
            service,
            address: words(address.ip()),
            port: NetworkU16::new(address.port()),
            family: if address.is_ipv6() { AddressFamily::Ipv6 } else { AddressFamily::Ipv4 },
            ..Backend::default()
        },
        info,
    }
}
