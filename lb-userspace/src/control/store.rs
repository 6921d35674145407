//! The maps as a state: read when the controller starts, and changed step by step. The only place
//! that writes them.

use std::{
    collections::btree_map::Entry,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use aya::maps::MapError;
use lb_common::{
    abi::{
        Backend, BackendInfo, Counters, Lifecycle, Protocol, Service, ServiceInfo, ServiceKey, maps,
    },
    wire::{Address, Ipv4Address, Ipv6Address, NetworkU16, NetworkU32, words},
};

use super::{
    plan::Change,
    ring_space::RingSpace,
    state::{BackendState, Bind, RingState, State},
};
use crate::dataplane::{DataplaneError, FamilyMaps, Maps, nat_source_words};

/// The state that the maps hold, and which slots of rings are in use.
///
/// # Errors
///
/// A map can't be read.
pub(super) fn observe(maps: &Maps) -> Result<(State, RingSpace), DataplaneError> {
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
    let mut space = RingSpace::new(maps.rings.slots());
    let mut binds = bound(&maps.ipv4)?;
    binds.extend(bound(&maps.ipv6)?);
    for (bind, service) in binds {
        state.binds.insert(bind, service);
        let ring = service.ring;
        if ring.size() > 0 {
            space.adopt(ring.offset(), ring.size());
        }
        // Of a service whose ring was just being replaced, one bind may lead to the old one.
        if let Entry::Vacant(place) = state.rings.entry(service.index) {
            let slots = maps.rings.read(ring.offset(), ring.size()).into();
            place.insert(RingState { slots, ring });
        }
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
    Ok((state, space))
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

/// Carries out one step, and notes it in `there` once the kernel has it.
///
/// # Errors
///
/// The kernel refuses; `there` is unchanged.
pub(super) fn apply(
    change: &Change,
    maps: &mut Maps,
    there: &mut State,
) -> Result<(), DataplaneError> {
    match change {
        Change::Settings(settings) => {
            done(maps.settings.set(0, settings, 0), maps::SETTINGS)?;
            there.settings = *settings;
        }
        Change::NatSource(index, address) => {
            let words = nat_source_words(words(*address));
            done(maps.nat_sources.set(*index, words, 0), maps::NAT_SOURCES)?;
            let index = *index as usize;
            if there.nat_sources.len() <= index {
                there.nat_sources.resize(index + 1, Ipv4Addr::UNSPECIFIED.into());
            }
            there.nat_sources[index] = *address;
        }
        Change::Mac(mac, longest) => {
            done(maps.local_macs.insert(mac, longest, 0), maps::LOCAL_MACS)?;
            there.local_macs.insert(*mac, *longest);
        }
        Change::RemoveMac(mac) => {
            gone(maps.local_macs.remove(mac), maps::LOCAL_MACS)?;
            there.local_macs.remove(mac);
        }
        Change::AddEgress(interface) => {
            maps.egress.insert(*interface, *interface, None, 0).map_err(|error| {
                DataplaneError::system(maps::EGRESS)(std::io::Error::other(error))
            })?;
            there.egress.insert(*interface);
        }
        Change::RemoveEgress(interface) => {
            // The kernel itself removes an interface that has gone.
            gone(maps.egress.remove(*interface), maps::EGRESS)?;
            there.egress.remove(interface);
        }
        Change::ClearService(index) => clear(&mut maps.service_counters, *index)
            .map_err(DataplaneError::map(maps::SERVICE_COUNTERS))?,
        Change::Service(index, info) => {
            done(maps.service_info.set(*index, info, 0), SERVICE_INFO)?;
            there.services.insert(*index, *info);
        }
        Change::FreeService(index) => {
            let free: ServiceInfo = bytemuck::Zeroable::zeroed();
            done(maps.service_info.set(*index, free, 0), SERVICE_INFO)?;
            there.services.remove(index);
        }
        Change::ClearBackend(index) => {
            clear(&mut maps.backend_counters, *index)
                .map_err(DataplaneError::map(maps::BACKEND_COUNTERS))?;
            // Anywhere: what had this address before may have left connections at the backend.
            done(maps.nat_cursors.set(*index, fastrand::u32(..), 0), maps::NAT_CURSORS)?;
        }
        Change::Backend(index, backend) => {
            done(maps.backends.set(*index, backend, 0), maps::BACKENDS)?;
            if let Some(known) = there.backends.get_mut(index) {
                known.backend = *backend;
            }
        }
        Change::BackendInfo(index, info) => {
            done(maps.backend_info.set(*index, **info, 0), BACKEND_INFO)?;
            let backend =
                maps.backends.get(index, 0).map_err(DataplaneError::map(maps::BACKENDS))?;
            there.backends.insert(*index, BackendState { backend, info: **info });
        }
        Change::FreeBackend(index) => {
            let free: BackendInfo = bytemuck::Zeroable::zeroed();
            done(maps.backend_info.set(*index, free, 0), BACKEND_INFO)?;
            done(maps.backends.set(*index, Backend::default(), 0), maps::BACKENDS)?;
            there.backends.remove(index);
        }
        Change::WriteRing(service, ring, slots) => {
            maps.rings.write(ring.offset(), slots);
            there
                .rings
                .insert(*service, RingState { slots: std::sync::Arc::clone(slots), ring: *ring });
        }
        Change::Bind(bind, service) => {
            let done = match bind.address.ip() {
                IpAddr::V4(ip) => maps.ipv4.services.insert(
                    service_key::<Ipv4Address>(ip.into(), bind),
                    service,
                    0,
                ),
                IpAddr::V6(ip) => maps.ipv6.services.insert(
                    service_key::<Ipv6Address>(ip.into(), bind),
                    service,
                    0,
                ),
            };
            done.map_err(DataplaneError::map(maps::SERVICES))?;
            there.binds.insert(*bind, *service);
        }
        Change::Unbind(bind) => {
            let removed = match bind.address.ip() {
                IpAddr::V4(ip) => maps.ipv4.services.remove(&service_key(ip.into(), bind)),
                IpAddr::V6(ip) => maps.ipv6.services.remove(&service_key(ip.into(), bind)),
            };
            gone(removed, maps::SERVICES)?;
            there.binds.remove(bind);
        }
        Change::ForgetRing(service) => {
            there.rings.remove(service);
        }
    }
    Ok(())
}

fn service_key<A: Address>(address: A, bind: &Bind) -> ServiceKey<A> {
    ServiceKey {
        address,
        port: NetworkU16::new(bind.address.port()),
        protocol: u16::from(bind.protocol.number()),
    }
}

fn done(result: Result<(), MapError>, name: &'static str) -> Result<(), DataplaneError> {
    result.map_err(DataplaneError::map(name))
}

/// An entry that wasn't there is as good as removed.
fn gone(result: Result<(), MapError>, name: &'static str) -> Result<(), DataplaneError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        result => done(result, name),
    }
}

fn clear(
    counters: &mut aya::maps::PerCpuArray<aya::maps::MapData, Counters>,
    index: u32,
) -> Result<(), MapError> {
    let cpus = counters.get(&index, 0)?.len();
    let zeroes = vec![Counters::default(); cpus].try_into().map_err(MapError::IoError)?;
    counters.set(index, zeroes, 0)
}
