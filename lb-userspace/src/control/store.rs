//! The maps as a state, changed step by step. The only place that writes them, with `shortcuts.rs`.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::atomic::Ordering,
};

use aya::maps::{MapError, lpm_trie::Key};
use ipnet::IpNet;
use lb_common::{
    abi::{
        AccessKey, Backend, BackendInfo, Counters, PORTS_A_WORD, PoolHead, Refusal, ServiceInfo,
        ServiceKey, generation_start, maps, pool_words, port_words,
    },
    wire::{Address, Ipv4Address, Ipv6Address, NetworkU16, words},
};

use super::{
    plan::Change,
    shortcuts::{add_ports, add_reply_ports, place_station, remove_station},
    state::{BackendState, Bind, RingState, State},
};
use crate::dataplane::{DataplaneError, Maps, PortMemory, nat_source_words, with_causes};

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
            add_reply_ports(maps, settings);
            done(maps.settings.set(0, settings, 0), maps::SETTINGS)?;
            if settings.trace_mask != there.settings.trace_mask {
                // Should they soon be where they were, they won't say what was true then.
                maps.shortcuts.traces.clear();
            }
            if settings.nat_trace_mask != there.settings.nat_trace_mask {
                maps.shortcuts.clear_through();
            }
            there.settings = *settings;
        }
        Change::NatSource(index, address) => {
            let words = nat_source_words(words(*address));
            done(maps.nat_sources.set(*index, words, 0), maps::NAT_SOURCES)?;
            if there.nat_sources.get(*index as usize).is_some() {
                // Flows that are sent from the one before go on by their entries, but their traces name it by its index.
                maps.shortcuts.clear_through();
            }
            let index = *index as usize;
            if there.nat_sources.len() <= index {
                there.nat_sources.resize(index + 1, Ipv4Addr::UNSPECIFIED.into());
            }
            there.nat_sources[index] = *address;
        }
        Change::Mac(mac, longest) => {
            done(maps.local_macs.insert(mac, longest, 0), maps::LOCAL_MACS)?;
            place_station(maps, there, mac, *longest)?;
            there.local_macs.insert(*mac, *longest);
        }
        Change::RemoveMac(mac) => {
            remove_station(maps, there, mac)?;
            there.local_macs.remove(mac);
        }
        Change::AddEgress(interface) => {
            maps.egress.insert(*interface, *interface, None, 0).map_err(|error| {
                let why = std::io::Error::other(with_causes(&error));
                DataplaneError::system(format!("map {}", maps::EGRESS))(why)
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
            done(maps.refusals.set(*index, Refusal::default(), 0), maps::REFUSALS)?;
        }
        Change::Backend(index, backend) => {
            let known = there.backends.get(index);
            let as_before = known.is_none_or(|it| it.backend.forwarding == backend.forwarding);
            if let Some(known) = known.filter(|_| !as_before) {
                let service = known.info.service;
                let binds = there.binds.iter().filter(|(_, bound)| bound.index == service);
                let binds: Vec<Bind> = binds.map(|(bind, _)| *bind).collect();
                add_ports(maps, &binds, Some(backend.forwarding));
            }
            done(maps.backends.set(*index, backend, 0), maps::BACKENDS)?;
            let is_same = |it: &BackendState| {
                it.backend.socket_address() == backend.socket_address()
                    && it.backend.service == backend.service
            };
            if known.is_some_and(|known| !is_same(known)) {
                // As above.
                maps.shortcuts.clear_through();
            }
            if let Some(known) = there.backends.get_mut(index) {
                known.backend = *backend;
            }
        }
        Change::BackendInfo(index, info) => {
            done(maps.backend_info.set(*index, **info, 0), BACKEND_INFO)?;
            if let Some(known) = there.backends.get_mut(index) {
                known.info = **info;
                return Ok(());
            }
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
        Change::WriteRing(service, state) => {
            let RingState { slots, members, ring } = state;
            if ring.size() > 0 {
                maps.rings.write(ring.offset(), slots);
                maps.rings.write(ring.members(), &[members.len() as u32]);
                maps.rings.write(ring.members() + 1, members);
            }
            there.rings.insert(*service, state.clone());
        }
        // Anywhere: what had this address before may have left connections at the backend.
        Change::WritePool(pool, ports) => {
            fill_pool(&maps.ports, *pool, *ports, fastrand::u32(..*ports));
        }
        Change::Network(list, network, access) => {
            let written = match network.addr() {
                IpAddr::V4(ip) => maps.ipv4.access.insert(
                    &access_key::<Ipv4Address>(*list, ip.into(), network),
                    access,
                    0,
                ),
                IpAddr::V6(ip) => maps.ipv6.access.insert(
                    &access_key::<Ipv6Address>(*list, ip.into(), network),
                    access,
                    0,
                ),
            };
            done(written, maps::ACCESS)?;
            there.access.entry(*list).or_default().insert(*network, *access);
        }
        Change::RemoveNetwork(list, network) => {
            let removed = match network.addr() {
                IpAddr::V4(ip) => maps.ipv4.access.remove(&access_key(*list, ip.into(), network)),
                IpAddr::V6(ip) => maps.ipv6.access.remove(&access_key(*list, ip.into(), network)),
            };
            gone(removed, maps::ACCESS)?;
            if let Some(networks) = there.access.get_mut(list) {
                networks.remove(network);
            }
            there.access.retain(|_, networks| !networks.is_empty());
        }
        Change::Bind(bind, service) => {
            add_ports(maps, &[*bind], there.forwarding(service.index));
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

/// Bits of a list's number, which stands before the address.
pub(super) const LIST_BITS: u32 = 32;

fn access_key<A: Address>(list: u32, address: A, network: &IpNet) -> Key<AccessKey<A>> {
    Key::new(LIST_BITS + u32::from(network.prefix_len()), AccessKey { list, address })
}

/// Writes a pool of so many ports, all free, of which `first` is the first to be given out.
fn fill_pool(memory: &PortMemory, pool: u32, ports: u32, first: u32) {
    let words = &memory.words()[pool as usize..][..pool_words(ports) as usize];
    let [present, next] =
        [0, 1].map(|generation| (generation_start(pool, ports, generation) - pool) as usize);
    for word in 0..port_words(ports) {
        let bits = free_bits(word, ports, first);
        words[present + word as usize].store(bits[0], Ordering::Relaxed);
        words[next + word as usize].store(bits[1], Ordering::Relaxed);
    }
    words[0].store(PoolHead::default().word(), Ordering::Relaxed);
}

/// What a word of such a pool says in the present and in the next generation.
fn free_bits(word: u32, ports: u32, first: u32) -> [u64; 2] {
    let below = |port: u32| match port.saturating_sub(word * PORTS_A_WORD) {
        bits if bits < PORTS_A_WORD => (1 << bits) - 1,
        _ => u64::MAX,
    };
    let (all, later) = (below(ports), below(first));
    [all & !later, all & later]
}

pub(super) fn done(result: Result<(), MapError>, name: &'static str) -> Result<(), DataplaneError> {
    result.map_err(DataplaneError::map(name))
}

/// An entry that wasn't there is as good as removed.
pub(super) fn gone(result: Result<(), MapError>, name: &'static str) -> Result<(), DataplaneError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_of_a_new_pool_is_free_in_one_generation() {
        for (ports, first) in [(1, 0), (64, 63), (130, 0), (130, 64), (130, 100), (200, 199)] {
            for port in 0..256 {
                let bits = free_bits(port / PORTS_A_WORD, ports, first);
                let free = bits.map(|bits| bits >> (port % PORTS_A_WORD) & 1 == 1);
                let expected = [port >= first && port < ports, port < first];
                assert_eq!(free, expected, "port {port} of {ports}, from {first} on");
            }
        }
    }
}
