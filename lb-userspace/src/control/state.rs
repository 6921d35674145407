//! What the maps hold, as values: what is wanted, and what is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
};

use lb_common::{
    abi::{
        Backend, BackendInfo, Forwarding, Lifecycle, Link, Ring, Service, ServiceInfo, Settings,
    },
    wire::{Address, Ipv4Address, MacAddress},
};

use super::ring::{self, Member};
use crate::{config::Config, netlink::Network};

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
    pub binds: BTreeMap<SocketAddrV4, Service>,
    /// Rings by service.
    pub rings: BTreeMap<u32, RingState>,
    /// Addresses that full NAT sends from, by index.
    pub nat_sources: Vec<Ipv4Addr>,
    /// Hardware addresses that are ours, by interface.
    pub local_macs: BTreeSet<(u32, MacAddress)>,
    /// Interfaces that frames may leave by.
    pub egress: BTreeSet<u32>,
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
    /// Where they lie. Only known of what is there, not of what is wanted.
    pub ring: Ring,
}

impl BackendState {
    /// Its address and port.
    pub fn address(&self) -> SocketAddrV4 {
        let address = Ipv4Address::from_words(self.backend.address);
        SocketAddrV4::new(address.into(), self.backend.port.get())
    }
}

impl State {
    /// The index of a backend in the configuration, by the names of its service and its own.
    pub fn find_backend(&self, service: &str, backend: &str) -> Option<u32> {
        let of_service = |state: &BackendState| {
            let info = self.services.get(&state.info.service);
            info.is_some_and(|info| {
                info.lifecycle == Lifecycle::Active && info.name.as_str() == service
            })
        };
        let found = self.backends.iter().find(|(_, state)| {
            state.info.lifecycle == Lifecycle::Active
                && state.info.name.as_str() == backend
                && of_service(state)
        });
        found.map(|(index, _)| *index)
    }

    /// Where the rings lie that are written, or that packets are still led to.
    pub fn ring_offsets(&self) -> BTreeSet<u32> {
        let written = self.rings.values().map(|state| state.ring);
        let led_to = self.binds.values().map(|service| service.ring);
        let used = written.chain(led_to).filter(|ring| ring.size() > 0);
        used.map(Ring::offset).collect()
    }

    /// Builds the rings anew whose members have changed since `members` was filled.
    pub fn build_rings(&mut self, members: &mut BTreeMap<u32, Vec<Member>>) {
        let mut now: BTreeMap<u32, Vec<Member>> = BTreeMap::new();
        for (index, info) in &self.services {
            if info.lifecycle == Lifecycle::Active {
                now.insert(*index, Vec::new());
            }
        }
        for (index, state) in &self.backends {
            if state.info.lifecycle != Lifecycle::Active {
                continue;
            }
            if let Some(members) = now.get_mut(&state.info.service) {
                members.push(Member {
                    index: *index,
                    identity: state.address().to_string(),
                    weight: state.info.weight(),
                    available: state.info.takes_new_flows(),
                });
            }
        }
        self.rings.retain(|service, _| now.contains_key(service));
        for (service, wanted) in &now {
            if members.get(service) == Some(wanted) && self.rings.contains_key(service) {
                continue;
            }
            let slots = ring::build(wanted, ring::size(wanted.len()), self.settings.hash_seed);
            for member in wanted {
                let count = slots.iter().filter(|slot| **slot == member.index).count();
                if let Some(state) = self.backends.get_mut(&member.index) {
                    state.info.ring_slots = count as u32;
                }
            }
            self.rings
                .insert(*service, RingState { slots: Arc::new(slots), ring: Ring::default() });
        }
        *members = now;
    }

    /// Takes in what the network looks like: how backends are reached, and which hardware
    /// addresses and interfaces are ours.
    ///
    /// A backend that can't be resolved any longer keeps what was known of it: its flows may well
    /// go on, and its checks will tell if it is gone.
    pub fn apply_network(&mut self, config: &Config, network: &Network, attached: &[u32]) {
        let indices: Vec<u32> = self.backends.keys().copied().collect();
        for index in indices {
            let Some(state) = self.backends.get(&index) else { continue };
            let Some(Ok(hop)) = network.next_hops.get(state.address().ip()) else { continue };
            let Some(link) = network.links.get(&hop.interface) else { continue };
            let mtu = u16::try_from(link.mtu).unwrap_or(u16::MAX);
            let out_of_reach = state.backend.forwarding == Forwarding::Dsr && hop.router.is_some();
            let link = if out_of_reach {
                Link::default()
            } else {
                Link { interface: hop.interface, station: hop.station, own: link.mac }
            };
            let sources = match config.nat_addresses.as_slice() {
                [] => vec![hop.source],
                addresses => addresses.to_vec(),
            };
            let nat_source = self.place_sources(&sources);
            if let Some(state) = self.backends.get_mut(&index) {
                state.backend.link = link;
                state.backend.maximum_datagram = mtu;
                if let Some(nat_source) = nat_source {
                    state.backend.nat_source = nat_source;
                    state.backend.nat_sources = sources.len() as u32;
                }
            }
        }
        self.egress = attached.iter().copied().collect();
        let leaving = self.backends.values().map(|state| state.backend.link.interface);
        self.egress.extend(leaving.filter(|interface| *interface != 0));
        self.local_macs.clear();
        for (index, link) in &network.links {
            let below = link.macvlan_of.unwrap_or(*index);
            if attached.contains(&below) && !link.mac.is_unknown() {
                self.local_macs.insert((below, link.mac));
            }
        }
        let links = || attached.iter().filter_map(|index| network.links.get(index));
        self.settings.redirect_always = links().any(|link| link.is_veth).into();
        let mtu = links().map(|link| link.mtu);
        self.settings.maximum_datagram = mtu.max().unwrap_or(1500);
    }

    /// The index from which on `sources` stand in the table, adding them if need be; `None` where
    /// there is no room.
    fn place_sources(&mut self, sources: &[Ipv4Addr]) -> Option<u32> {
        let there = self.nat_sources.windows(sources.len()).position(|part| part == sources);
        let index = match there {
            Some(index) => index,
            None if self.nat_sources.len() + sources.len() <= super::NAT_SOURCES as usize => {
                self.nat_sources.extend_from_slice(sources);
                self.nat_sources.len() - sources.len()
            }
            None => return None,
        };
        u32::try_from(index).ok()
    }
}
