//! What packets have to know to go past the tables of services and flows: see [`lb_common::datapath`].
//!
//! Ports are never taken out of a set: what has been forwarded may go on, and a port too many costs no more than time.

use lb_common::abi::{Forwarding, LocalMac, PortSet, Settings, maps};

use super::{
    state::{Bind, State},
    store::done,
};
use crate::dataplane::{DataplaneError, Maps};

/// Writes what may not have been written, when an earlier controller died between two steps, or is lost.
///
/// # Errors
///
/// The kernel refuses.
pub(super) fn complete(maps: &mut Maps, there: &State) -> Result<(), DataplaneError> {
    let nat = (there.settings.nat_port_count > 0).then_some(there.settings.nat_port_first as u16);
    let mut ports = there.binds.keys().map(|bind| bind.address.port()).chain(nat);
    if ports.any(|port| !maps.port_sets.has(PortSet::Ours, port)) {
        // Somebody has removed the pin, and nobody knows any longer which ports flows have.
        for set in PortSet::ALL {
            maps.port_sets.add(set, 0..=u16::MAX);
        }
    }
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

/// Notes the ports of what is bound to a service that forwards like this.
pub(super) fn add_ports(maps: &Maps, binds: &[Bind], forwarding: Option<Forwarding>) {
    let ports = || binds.iter().map(|bind| bind.address.port());
    maps.port_sets.add(PortSet::Ours, ports());
    if let Some(forwarding) = forwarding {
        let set = if forwarding.sees_replies() { PortSet::Nat } else { PortSet::Direct };
        maps.port_sets.add(set, ports());
    }
}

/// Notes the ports that replies are sent to.
pub(super) fn add_reply_ports(maps: &Maps, settings: &Settings) {
    let Settings { nat_port_first: first, nat_port_count: count, .. } = settings;
    if settings.replies_anywhere != 0 {
        maps.port_sets.add(PortSet::Ours, 0..=u16::MAX);
    } else {
        let ports = *first..first.saturating_add(*count);
        maps.port_sets.add(PortSet::Ours, ports.filter_map(|port| u16::try_from(port).ok()));
    }
}
