//! What has to be changed so that what is there becomes what is wanted: a pure diff.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Instant,
};

use lb_common::{
    abi::{Backend, BackendInfo, Ring, Service, ServiceInfo, Settings},
    wire::MacAddress,
};

use super::{ring_space::RingSpace, state::State};

/// One step. In the order of a plan, no packet ever meets a half-made thing: what is named is
/// there before what names it, and goes after it.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Write the settings.
    Settings(Settings),
    /// Write an address that full NAT sends from.
    NatSource(u32, Ipv4Addr),
    /// Take frames for a hardware address on an interface.
    AddMac(u32, MacAddress),
    /// Take them no longer.
    RemoveMac(u32, MacAddress),
    /// Let frames leave by an interface.
    AddEgress(u32),
    /// No longer.
    RemoveEgress(u32),
    /// Put a service's counters to zero: its index has a new owner.
    ClearService(u32),
    /// Write a service's info.
    Service(u32, ServiceInfo),
    /// Free a service's index.
    FreeService(u32),
    /// Put a backend's counters to zero: its index has a new owner.
    ClearBackend(u32),
    /// Write what the packet path knows of a backend.
    Backend(u32, Backend),
    /// Write a backend's info.
    BackendInfo(u32, Box<BackendInfo>),
    /// Free a backend's index.
    FreeBackend(u32),
    /// Write a ring of a service where no packet looks yet.
    WriteRing(u32, Ring, Arc<Vec<u32>>),
    /// Let clients reach a service, by its ring.
    Bind(SocketAddrV4, Service),
    /// No longer.
    Unbind(SocketAddrV4),
    /// Give a range of slots back.
    FreeRing(u32, Ring),
}

/// The rings of all services together don't fit.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "no room for a ring of {0} slots; to make more, stop the controller, run `lb detach` and start \
     it again"
)]
pub struct NoRingSpace(u32);

/// The steps from `there` to `wanted`. Rings that are wanted with other contents get a place in
/// `space`, as free at `now`.
///
/// # Errors
///
/// A ring finds no place. Then nothing has been given out.
pub fn plan(
    wanted: &State,
    there: &State,
    space: &mut RingSpace,
    now: Instant,
) -> Result<Vec<Change>, NoRingSpace> {
    let mut changes = Vec::new();
    if wanted.settings != there.settings {
        changes.push(Change::Settings(wanted.settings));
    }
    for (index, address) in wanted.nat_sources.iter().enumerate() {
        if there.nat_sources.get(index) != Some(address) {
            changes.push(Change::NatSource(index as u32, *address));
        }
    }
    let new_macs = wanted.local_macs.difference(&there.local_macs);
    changes.extend(new_macs.map(|(index, mac)| Change::AddMac(*index, *mac)));
    let new_egress = wanted.egress.difference(&there.egress);
    changes.extend(new_egress.map(|index| Change::AddEgress(*index)));
    plan_infos(wanted, there, &mut changes);
    plan_rings(wanted, there, space, now, &mut changes)?;
    plan_departures(wanted, there, &mut changes);
    Ok(changes)
}

fn plan_infos(wanted: &State, there: &State, changes: &mut Vec<Change>) {
    for (index, info) in &wanted.services {
        let known = there.services.get(index);
        if known.is_none() {
            changes.push(Change::ClearService(*index));
        }
        if known != Some(info) {
            changes.push(Change::Service(*index, *info));
        }
    }
    for (index, state) in &wanted.backends {
        let known = there.backends.get(index);
        if known.is_none() {
            changes.push(Change::ClearBackend(*index));
        }
        if known.map(|known| &known.backend) != Some(&state.backend) {
            changes.push(Change::Backend(*index, state.backend));
        }
        if known.map(|known| &known.info) != Some(&state.info) {
            changes.push(Change::BackendInfo(*index, Box::new(state.info)));
        }
    }
}

fn plan_rings(
    wanted: &State,
    there: &State,
    space: &mut RingSpace,
    now: Instant,
    changes: &mut Vec<Change>,
) -> Result<(), NoRingSpace> {
    let mut freed = Vec::new();
    let mut given = Vec::new();
    let mut in_force = std::collections::BTreeMap::new();
    for (service, state) in &wanted.rings {
        let known = there.rings.get(service).cloned().unwrap_or_default();
        if known.slots == state.slots {
            in_force.insert(*service, known.ring);
            continue;
        }
        let size = state.slots.len() as u32;
        let offset = match size {
            0 => 0,
            _ => match space.allocate(size, now) {
                Some(offset) => offset,
                None => {
                    for offset in given {
                        space.free(offset, now);
                    }
                    return Err(NoRingSpace(size));
                }
            },
        };
        if size > 0 {
            given.push(offset);
        }
        let ring = Ring::new(offset, size, known.ring.generation() + 1);
        changes.push(Change::WriteRing(*service, ring, Arc::clone(&state.slots)));
        in_force.insert(*service, ring);
        freed.push(Change::FreeRing(*service, known.ring));
    }
    for (bind, index) in &wanted.binds {
        let ring = in_force.get(index).copied().unwrap_or_default();
        let known = there.binds.get(bind).map(|index| {
            (*index, there.rings.get(index).map(|known| known.ring).unwrap_or_default())
        });
        if known != Some((*index, ring)) {
            changes.push(Change::Bind(*bind, Service { ring, index: *index, reserved: 0 }));
        }
    }
    let gone = there.binds.keys().filter(|bind| !wanted.binds.contains_key(bind));
    changes.extend(gone.map(|bind| Change::Unbind(*bind)));
    for (service, state) in &there.rings {
        if !wanted.rings.contains_key(service) {
            freed.push(Change::FreeRing(*service, state.ring));
        }
    }
    changes.extend(freed);
    Ok(())
}

fn plan_departures(wanted: &State, there: &State, changes: &mut Vec<Change>) {
    let gone = there.backends.keys().filter(|index| !wanted.backends.contains_key(index));
    changes.extend(gone.map(|index| Change::FreeBackend(*index)));
    let gone = there.services.keys().filter(|index| !wanted.services.contains_key(index));
    changes.extend(gone.map(|index| Change::FreeService(*index)));
    let gone = there.local_macs.difference(&wanted.local_macs);
    changes.extend(gone.map(|(index, mac)| Change::RemoveMac(*index, *mac)));
    let gone = there.egress.difference(&wanted.egress);
    changes.extend(gone.map(|index| Change::RemoveEgress(*index)));
}
