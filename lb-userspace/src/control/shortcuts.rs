//! What packets by direct return have to know to go past the table of flows: see [`lb_common::datapath`].

use lb_common::abi::{Forwarding, LocalMac, Ring, Service, maps};

use super::{
    state::{Bind, State},
    store::done,
};
use crate::dataplane::{DataplaneError, Maps};

const DIRECT_PORTS: &str = maps::DIRECT_PORTS;

/// Whether what is known of the slots by which a service was reached holds for those of its present ring: it is the same
/// one, or was written after it.
pub(super) fn follows(service: &Service, before: &Service) -> bool {
    let next = Ring::new(0, 0, before.ring.generation() + 1).generation();
    service.leads_as(before)
        && (service.ring == before.ring
            || (service.ring.generation() == next && service.ring.size() == before.ring.size()))
}

/// Writes what may not have been written, when an earlier controller died between two steps.
///
/// # Errors
///
/// The kernel refuses.
pub(super) fn complete(maps: &mut Maps, there: &State) -> Result<(), DataplaneError> {
    there.local_macs.keys().try_for_each(|mac| set_station(maps, mac.place(), Some(mac)))
}

/// Writes which of our hardware addresses stands at a place, if any.
pub(super) fn set_station(
    maps: &mut Maps,
    place: u32,
    mac: Option<&LocalMac>,
) -> Result<(), DataplaneError> {
    done(maps.stations.set(place, mac.copied().unwrap_or_default(), 0), maps::STATIONS)
}

/// Notes the ports of what is bound to a service that forwards like this, if it is by direct return.
pub(super) fn add_direct_ports(
    maps: &mut Maps,
    binds: &[Bind],
    forwarding: Option<Forwarding>,
) -> Result<(), DataplaneError> {
    if forwarding.is_none_or(Forwarding::sees_replies) {
        return Ok(());
    }
    let mut ports = maps.direct_ports.get(&0, 0).map_err(DataplaneError::map(DIRECT_PORTS))?;
    let known = ports;
    binds.iter().for_each(|bind| ports.add(bind.address.port()));
    if ports == known {
        return Ok(());
    }
    done(maps.direct_ports.set(0, ports, 0), DIRECT_PORTS)
}

#[cfg(test)]
mod tests {
    use lb_common::abi::service_options;

    use super::*;

    #[test]
    fn only_the_ring_before_says_what_is_known_of_slots() {
        let service = |index, generation, options| Service {
            ring: Ring::new(generation * 100, 61, generation),
            index,
            options,
            ..Service::default()
        };
        let before = service(1, 4095, 0);
        assert!(follows(&before, &before));
        assert!(follows(&Service { access: 3, ..before }, &before));
        assert!(follows(&Service { ring: Ring::new(0, 61, 0), ..before }, &before));
        for other in [
            service(1, 1, 0),
            service(2, 4095, 0),
            service(1, 4095, service_options::SOURCE),
            service(1, 4095, service_options::LEAST),
            Service { affinity: 10, ..before },
            Service { most_load: 120, ..before },
            Service { ring: Ring::new(0, 67, 0), ..before },
        ] {
            assert!(!follows(&other, &before), "{other:?}");
            assert!(!follows(&before, &other), "{other:?}");
        }
        let by_load = Service { most_load: 120, ..before };
        assert!(!follows(&by_load, &by_load));
    }
}
