//! The maps as a state, as they are when a controller starts.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use lb_common::{
    abi::{AccessKey, Lifecycle, Protocol, Ring, Service, maps, pool_words},
    wire::{Address, Ipv4Address, Ipv6Address, NetworkU32},
};

use super::{
    plan::Spaces,
    space::Space,
    state::{BackendState, Bind, RingState, State},
    store::LIST_BITS,
};
use crate::dataplane::{DataplaneError, FamilyMaps, Maps, RingMemory};

/// The state that the maps hold, and which slots of rings are in use.
///
/// # Errors
///
/// A map can't be read.
pub(super) fn observe(maps: &Maps) -> Result<(State, Spaces), DataplaneError> {
    let mut state = State {
        settings: maps.settings.get(&0, 0).map_err(DataplaneError::map(maps::SETTINGS))?,
        ..State::default()
    };
    for index in 0..maps.service_info.len() {
        let info = maps.service_info.get(&index, 0).map_err(DataplaneError::map(SERVICE_INFO))?;
        if info.lifecycle != Lifecycle::Free {
            state.services.insert(index, info);
        }
    }
    for index in 1..maps.backend_info.len() {
        let info = maps.backend_info.get(&index, 0).map_err(DataplaneError::map(BACKEND_INFO))?;
        if info.lifecycle != Lifecycle::Free {
            let backend =
                maps.backends.get(&index, 0).map_err(DataplaneError::map(maps::BACKENDS))?;
            state.backends.insert(index, BackendState { backend, info });
        }
    }
    let mut spaces = Spaces {
        rings: Space::new(maps.rings.slots()),
        pools: Space::new(maps.ports.words().len() as u32),
    };
    state.doubt_pools();
    for backend in state.backends.values().filter(|backend| backend.has_pool()) {
        spaces.pools.adopt(backend.backend.ports, pool_words(state.pool_ports(&backend.backend)));
    }
    let mut binds = bound(&maps.ipv4)?;
    binds.extend(bound(&maps.ipv6)?);
    for (bind, service) in binds {
        state.binds.insert(bind, service);
        let ring = read_ring(&maps.rings, service.ring);
        if ring.room() > 0 {
            spaces.rings.adopt(ring.ring.offset(), ring.room());
        }
        // Of a service whose ring was just being replaced, one bind may lead to the old one.
        state.rings.entry(service.index).or_insert(ring);
    }
    for index in 0..maps.nat_sources.len() {
        let words =
            maps.nat_sources.get(&index, 0).map_err(DataplaneError::map(maps::NAT_SOURCES))?;
        if words[0] == 0 {
            break;
        }
        state.nat_sources.push(nat_source(words));
    }
    for entry in &maps.local_macs {
        let (mac, longest) = entry.map_err(DataplaneError::map(maps::LOCAL_MACS))?;
        state.local_macs.insert(mac, longest);
    }
    for key in maps.egress.keys() {
        state.egress.insert(key.map_err(DataplaneError::map(maps::EGRESS))?);
    }
    read_access(&maps.ipv4, &mut state)?;
    read_access(&maps.ipv6, &mut state)?;
    Ok((state, spaces))
}

/// What stands where a ring lies.
fn read_ring(rings: &RingMemory, ring: Ring) -> RingState {
    if ring.size() == 0 {
        return RingState { ring, ..RingState::default() };
    }
    let slots = rings.read(ring.offset(), ring.size());
    let count = rings.read(ring.members(), 1).first().copied().unwrap_or(0);
    let members = rings.read(ring.members() + 1, count);
    RingState { slots: slots.into(), members: members.into(), ring }
}

/// What services are bound to, on addresses of a family.
fn bound<A: Address>(maps: &FamilyMaps<A>) -> Result<Vec<(Bind, Service)>, DataplaneError> {
    let mut binds = Vec::new();
    for entry in &maps.services {
        let (key, service) = entry.map_err(DataplaneError::map(maps::SERVICES))?;
        let address = SocketAddr::new(key.address.into(), key.port.get());
        let protocol = if key.protocol == u16::from(Protocol::Udp.number()) {
            Protocol::Udp
        } else {
            Protocol::Tcp
        };
        binds.push((Bind { address, protocol }, service));
    }
    Ok(binds)
}

/// Adds what lists say of the networks of a family.
fn read_access<A: Address>(maps: &FamilyMaps<A>, state: &mut State) -> Result<(), DataplaneError> {
    for entry in &maps.access {
        let (key, access) = entry.map_err(DataplaneError::map(maps::ACCESS))?;
        let AccessKey { list, address } = key.data();
        let length = key.prefix_len().saturating_sub(LIST_BITS) as u8;
        if let Ok(network) = IpNet::new(address.into(), length) {
            state.access.entry(list).or_default().insert(network, access);
        }
    }
    Ok(())
}

/// The address that stands in [`Maps::nat_sources`]: of a host on IPv6, more than the first word is
/// in use.
fn nat_source(words: [u32; 4]) -> IpAddr {
    let words = words.map(|word| NetworkU32::new(u32::from_be(word)));
    if words[1..].iter().all(|word| word.get() == 0) {
        Ipv4Address::from_words(words).into()
    } else {
        Ipv6Address::from_words(words).into()
    }
}

const SERVICE_INFO: &str = maps::SERVICE_INFO;
const BACKEND_INFO: &str = maps::BACKEND_INFO;
