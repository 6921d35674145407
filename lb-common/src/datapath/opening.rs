//! A client opens a connection: a backend is picked and the flow is recorded.

use super::{Packet, Reason, Table, Tables, Verdict, hash, nat, parse::Segment, rewrite};
use crate::{
    abi::{
        Backend, Direction, Flow, FlowState, LocalMac, NO_BACKEND, Service, ServiceKey, Settings,
    },
    wire::{Address, ChecksumDelta},
};

/// Forwards a connection's first segment.
#[inline(always)]
pub(super) fn forward<A: Address, P: Packet, T: Tables<A>>(
    packet: &mut P,
    tables: &T,
    segment: &Segment<A>,
    service: &Service,
) -> Result<Verdict, Reason> {
    let own =
        LocalMac { interface: segment.link.interface, address: segment.link.own, reserved: 0 };
    if !tables.is_local_mac(&own) {
        return Err(Reason::OtherStation);
    }
    if !segment.flags.opens() && !segment.flags.is_invalid() {
        return Err(Reason::NoFlow);
    }
    let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
    segment.admit(packet, &settings)?;
    let key = &segment.key;
    if key.source.is_invalid_source()
        || key.source == key.destination
        || segment.link.station.is_group()
    {
        return Err(Reason::InvalidSource);
    }

    let (index, backend) = pick(tables, segment, service, &settings)?;
    let now = tables.now();
    let mut flow = Flow {
        source: key.destination,
        destination: key.source,
        source_port: key.destination_port,
        destination_port: key.source_port,
        network_delta: ChecksumDelta::ZERO,
        transport_delta: ChecksumDelta::ZERO,
        backend: index,
        service: service.index,
        opened: now,
        last_seen: now,
        expected_acknowledgement: 0,
        link: segment.link,
        direction: Direction::ToClient as u8,
        state: FlowState::SYN,
        finished: 0,
        answered: 0,
    };
    let reply_key = nat::reserve(tables, &settings, &backend, key.protocol, &mut flow)?;

    flow.source = reply_key.destination;
    flow.destination = reply_key.source;
    flow.source_port = reply_key.destination_port;
    flow.destination_port = reply_key.source_port;
    flow.direction = Direction::ToBackend as u8;
    rewrite::prepare(&mut flow, key);
    if tables.insert(Table::Embryonic, key, &flow).is_err() {
        tables.remove(Table::Embryonic, &reply_key);
        return Err(Reason::FlowTableFull);
    }

    rewrite::forward(packet, tables, segment, &flow, backend.link, Reason::Opened)
}

/// The service that a segment is for.
#[inline(always)]
pub(super) fn service<A: Address, T: Tables<A>>(
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
pub(super) fn would_pick<A: Address, T: Tables<A>>(
    tables: &T,
    segment: &Segment<A>,
    backend: u32,
) -> bool {
    let Some(service) = service(tables, segment) else { return false };
    let Some(settings) = tables.settings() else { return false };
    pick(tables, segment, &service, &settings).is_ok_and(|(index, _)| index == backend)
}

/// The backend that the service's ring holds for this flow, and its index.
#[inline(always)]
fn pick<A: Address, T: Tables<A>>(
    tables: &T,
    segment: &Segment<A>,
    service: &Service,
    settings: &Settings,
) -> Result<(u32, Backend), Reason> {
    if service.ring.size() == 0 {
        return Err(Reason::NoBackend);
    }
    let slot = service.ring.slot(hash::flow(&segment.key, settings.hash_seed));
    let index = tables.ring_slot(slot).ok_or(Reason::TablesIncomplete)?;
    if index == NO_BACKEND {
        return Err(Reason::TablesIncomplete);
    }
    let backend = tables.backend(index).ok_or(Reason::TablesIncomplete)?;
    if backend.link.interface == 0 || backend.nat_sources == 0 {
        return Err(Reason::NextHopUnknown);
    }
    Ok((index, backend))
}
