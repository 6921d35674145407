//! What packets have to know to go past the tables of services and flows: see [`lb_common::datapath`].
//!
//! Ports are never taken out of a set: what has been forwarded may go on, and a port too many costs no more than time.

use lb_common::abi::{Forwarding, LocalMac, PortSet, STATIONS, Settings, Station, maps};

use super::{
    state::{Bind, State},
    store::{done, gone},
};
use crate::dataplane::{DataplaneError, Maps};

/// Writes what may not have been written, when an earlier controller died between two steps, or is lost, and erases all traces.
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
    // Nor did it take away what isn't ours any longer, and nobody has erased traces of what it removed last.
    for place in 0..STATIONS {
        let stands = stands(maps, place)?;
        if stands != LocalMac::default() && !there.local_macs.contains_key(&stands) {
            vacate(maps, place)?;
        }
    }
    maps.shortcuts.clear();
    let mut stations = there.local_macs.iter();
    stations.try_for_each(|(mac, longest)| place_station(maps, there, mac, *longest))
}

/// Lets one of our hardware addresses stand in its place, from where datagrams may be so long, in bytes, unless another one of ours
/// stands there.
///
/// # Errors
///
/// The kernel refuses.
pub(super) fn place_station(
    maps: &mut Maps,
    there: &State,
    mac: &LocalMac,
    longest: u32,
) -> Result<(), DataplaneError> {
    let place = mac.place();
    let stands = stands(maps, place)?;
    if stands != *mac && there.local_macs.contains_key(&stands) {
        return Ok(());
    }
    let station = Station { mac: *mac, maximum_datagram: longest, ..Station::default() };
    done(maps.stations.set(place, station, 0), maps::STATIONS)
}

/// Takes a hardware address that isn't ours any longer from its place, then from those that are ours, and erases what names it. Then
/// another one of ours that belongs there may have the place.
///
/// # Errors
///
/// The kernel refuses.
pub(super) fn remove_station(
    maps: &mut Maps,
    there: &State,
    mac: &LocalMac,
) -> Result<(), DataplaneError> {
    let place = mac.place();
    if stands(maps, place)? == *mac {
        vacate(maps, place)?;
    }
    gone(maps.local_macs.remove(mac), maps::LOCAL_MACS)?;
    maps.shortcuts.clear_by_station();
    let mut others = there.local_macs.iter().filter(|(other, _)| *other != mac);
    let other = others.find(|(other, _)| other.place() == place);
    other.map_or(Ok(()), |(other, longest)| place_station(maps, there, other, *longest))
}

/// Which hardware address stands at a place; zeros: none.
fn stands(maps: &Maps, place: u32) -> Result<LocalMac, DataplaneError> {
    let station = maps.stations.get(&place, 0).map_err(DataplaneError::map(maps::STATIONS))?;
    Ok(station.mac)
}

fn vacate(maps: &mut Maps, place: u32) -> Result<(), DataplaneError> {
    done(maps.stations.set(place, Station::default(), 0), maps::STATIONS)
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
