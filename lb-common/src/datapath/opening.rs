//! A client opens a connection, or goes on with one that isn't known: a backend is picked and the flow is
//! recorded.

use super::{
    Family, FamilyTables, Reason, Table, established, hash, nat, parse::Segment, rewrite,
    tables::forget,
};
use crate::{
    abi::{
        Backend, Direction, Flow, FlowKey, FlowState, Forwarding, NO_BACKEND, Service, ServiceKey,
        Settings,
    },
    wire::TcpFlags,
};

/// Demands that a segment may open a connection to the service, picks a backend, and writes down the
/// flow's direction to it.
#[inline(always)]
pub(super) fn choose<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    service: &Service,
    flow: &mut Flow<A>,
) -> Result<(), Reason> {
    flow.maximum_datagram = established::demand_own_station(tables, segment)?;
    let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
    let picked = pick(tables, segment, service, &settings);
    if !segment.opens() && !segment.flags.is_invalid() {
        let backend = picked.ok().and_then(|index| tables.backend(index));
        let forwarding = backend.map(|backend| backend.forwarding).ok_or(Reason::NoFlow)?;
        if !may_adopt(segment, forwarding) {
            return Err(Reason::NoFlow);
        }
    }
    let key = &segment.key;
    if key.source.is_invalid_source()
        || key.source == key.destination
        || segment.link.station.is_group()
    {
        return Err(Reason::InvalidSource);
    }
    let index = picked?;
    let backend = tables.backend(index).ok_or(Reason::TablesIncomplete)?;
    flow.backend = index;
    flow.service = service.index;
    flow.forwarding = backend.forwarding;
    flow.direction = Direction::ToBackend as u8;
    Ok(())
}

/// Writes down the direction to the backend of a connection that isn't known, for an ICMP error about it:
/// see [`may_adopt`].
#[inline(always)]
pub(super) fn guess<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    flow: &mut Flow<A>,
) -> Option<()> {
    let service = service(tables, segment)?;
    let settings = tables.settings()?;
    let index = pick(tables, segment, &service, &settings).ok()?;
    let forwarding = tables.backend(index)?.forwarding;
    if !may_adopt(segment, forwarding) {
        return None;
    }
    flow.source = segment.key.source;
    flow.destination = segment.key.destination;
    flow.backend = index;
    flow.forwarding = forwarding;
    flow.direction = Direction::ToBackend as u8;
    Some(())
}

/// Whether a connection may be gone on with that isn't known: another balancer may have opened it, whose
/// addresses moved here. Where nothing is translated, what the ring leads to is the same there and
/// here.
#[inline(always)]
fn may_adopt<A: Family>(segment: &Segment<A>, forwarding: Forwarding) -> bool {
    !forwarding.sees_replies() && !segment.flags.has(TcpFlags::SYN)
}

/// Records the flow that a segment opens, as a half-open handshake, and completes `flow`. What
/// `reply_key` holds before and afterwards is of no interest.
#[inline(always)]
pub(super) fn record<A: Family, T: FamilyTables<A>>(
    tables: &T,
    settings: &Settings,
    segment: &Segment<A>,
    backend: Option<&Backend>,
    flow: &mut Flow<A>,
    reply_key: &mut FlowKey<A>,
) -> Result<Reason, Reason> {
    let backend = backend.ok_or(Reason::TablesIncomplete)?;
    let key = &segment.key;
    let now = tables.now();
    flow.source = key.destination;
    flow.destination = key.source;
    flow.source_port = key.destination_port;
    flow.destination_port = key.source_port;
    flow.opened = now;
    flow.last_seen = now;
    // A SYN counts as one byte.
    flow.expected = segment.sequence.wrapping_add(u32::from(segment.opens()));
    flow.link = segment.link;
    flow.state = FlowState::SYN;
    flow.finished = 0;
    if flow.forwarding.sees_replies() {
        flow.direction = Direction::ToClient as u8;
        *reply_key = FlowKey {
            source: A::from_words(backend.address),
            destination: key.source,
            source_port: backend.port,
            destination_port: key.source_port,
            protocol: key.protocol,
        };
        nat::reserve(tables, settings, backend, reply_key, flow)?;
        flow.source = reply_key.destination;
        flow.destination = reply_key.source;
        flow.source_port = reply_key.destination_port;
        flow.destination_port = reply_key.source_port;
    } else {
        flow.source = key.source;
        flow.destination = key.destination;
        flow.source_port = key.source_port;
        flow.destination_port = key.destination_port;
    }
    flow.direction = Direction::ToBackend as u8;
    rewrite::prepare(flow, key);
    if tables.insert(Table::Embryonic, key, flow).is_err() {
        forget(tables, Table::Embryonic, key, flow);
        return Err(Reason::FlowTableFull);
    }
    if segment.is_udp() {
        // Without a handshake, nothing else tells a flow's beginning.
        tables.count_new_flow(flow.service, flow.backend);
    }
    Ok(if segment.opens() { Reason::Opened } else { Reason::Adopted })
}

/// The service that a segment is for.
#[inline(always)]
pub(super) fn service<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
) -> Option<Service> {
    tables.service(&ServiceKey {
        address: segment.key.destination,
        port: segment.key.destination_port,
        protocol: segment.key.protocol as u16,
    })
}

/// Whether a new connection of this client would go to the backend as well.
#[inline(always)]
pub(super) fn would_pick<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    backend: u32,
) -> bool {
    let Some(service) = service(tables, segment) else { return false };
    let Some(settings) = tables.settings() else { return false };
    pick(tables, segment, &service, &settings).is_ok_and(|index| index == backend)
}

/// Index of the backend that the service's ring holds for this flow.
#[inline(always)]
fn pick<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    service: &Service,
    settings: &Settings,
) -> Result<u32, Reason> {
    if service.ring.size() == 0 {
        return Err(Reason::NoBackend);
    }
    let slot = service.ring.slot(hash::flow(&segment.key, settings.hash_seed));
    let index = tables.ring_slot(slot).ok_or(Reason::TablesIncomplete)?;
    if index == NO_BACKEND {
        return Err(Reason::TablesIncomplete);
    }
    Ok(index)
}
