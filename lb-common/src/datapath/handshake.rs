//! Packets of a handshake that isn't complete: the client's SYN was forwarded.

use super::{
    InsertError, Packet, Reason, Table, Tables, Verdict, established, parse::Segment, rewrite,
};
use crate::{
    abi::{Direction, Entry, Flow, FlowKey, FlowState},
    wire::{Address, TcpFlags},
};

/// The entry of the half-open handshake that a segment belongs to.
///
/// The direction back may have been evicted on its own; a client's SYN then starts afresh.
#[inline(always)]
pub(super) fn find<'t, A: Address, T: Tables<A>>(
    tables: &'t T,
    segment: &Segment<A>,
) -> Option<Entry<'t, Flow<A>>> {
    let entry = tables.find(Table::Embryonic, &segment.key)?;
    let flow = entry.read();
    if segment.flags.opens()
        && flow.direction == Direction::ToBackend as u8
        && reply(tables, segment, &flow).is_none()
    {
        tables.remove(Table::Embryonic, &segment.key);
        return None;
    }
    Some(entry)
}

/// The direction back to the client, unless it was evicted and its port given to another client.
#[inline(always)]
fn reply<'t, A: Address, T: Tables<A>>(
    tables: &'t T,
    segment: &Segment<A>,
    flow: &Flow<A>,
) -> Option<Entry<'t, Flow<A>>> {
    let protocol = segment.key.protocol;
    let reply = tables.find(Table::Embryonic, &flow.peer_key(protocol))?;
    (reply.read().peer_key(protocol) == segment.key).then_some(reply)
}

/// Forwards a segment of a half-open handshake. Its direction is the entry's: a service may lie on
/// an address and port that full NAT sends from, so the receiver doesn't tell.
#[inline(always)]
pub(super) fn forward<A: Address, P: Packet, T: Tables<A>>(
    packet: &mut P,
    tables: &T,
    segment: &Segment<A>,
    entry: Entry<'_, Flow<A>>,
) -> Result<Verdict, Reason> {
    let mut flow = entry.read();
    let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
    segment.admit(packet, &settings)?;
    match Direction::from_u8(flow.direction) {
        Direction::ToBackend => from_client(packet, tables, segment, entry, &mut flow),
        Direction::ToClient => from_backend(packet, tables, segment, &flow),
    }
}

/// Forwards a client's segment: its SYN again, the acknowledgement that completes the handshake, or
/// whatever else, for the backend to judge.
#[inline(always)]
fn from_client<A: Address, P: Packet, T: Tables<A>>(
    packet: &mut P,
    tables: &T,
    segment: &Segment<A>,
    entry: Entry<'_, Flow<A>>,
    flow: &mut Flow<A>,
) -> Result<Verdict, Reason> {
    let backend = tables.backend(flow.backend).ok_or(Reason::TablesIncomplete)?;
    if backend.link.interface == 0 {
        return Err(Reason::NextHopUnknown);
    }
    established::learn_link(tables, segment, Table::Embryonic, entry, flow)?;

    if segment.flags.has(TcpFlags::RST) {
        forget(tables, segment, flow);
    } else if flow.answered == 1
        && segment.flags.has(TcpFlags::ACK)
        && segment.acknowledgement == flow.expected_acknowledgement
    {
        establish(tables, segment, flow)?;
    } else {
        entry.touch(tables.now());
    }
    rewrite::forward(packet, tables, segment, flow, backend.link, Reason::ToBackend)
}

/// Forwards a backend's segment: its SYN-ACK, its refusal, or whatever else, for the client to
/// judge.
#[inline(always)]
fn from_backend<A: Address, P: Packet, T: Tables<A>>(
    packet: &mut P,
    tables: &T,
    segment: &Segment<A>,
    flow: &Flow<A>,
) -> Result<Verdict, Reason> {
    if segment.flags.has(TcpFlags::RST) {
        forget(tables, segment, flow);
    } else if segment.flags.answers() {
        let peer = tables
            .find(Table::Embryonic, &flow.peer_key(segment.key.protocol))
            .ok_or(Reason::NoService)?;
        peer.set_answered(segment.sequence.wrapping_add(1));
        peer.touch(tables.now());
    }
    rewrite::forward(packet, tables, segment, flow, flow.link, Reason::ToClient)
}

/// Moves both directions to the table of established flows.
#[inline(always)]
fn establish<A: Address, T: Tables<A>>(
    tables: &T,
    segment: &Segment<A>,
    flow: &mut Flow<A>,
) -> Result<(), Reason> {
    let key = &segment.key;
    let reply_key = flow.peer_key(key.protocol);
    let mut reply = reply(tables, segment, flow).ok_or(Reason::PortCollision)?.read();
    let now = tables.now();
    reply.state = FlowState::ESTABLISHED;
    reply.last_seen = now;
    reply.link = segment.link;
    insert(tables, &reply_key, &reply)?;

    // Changed in place: a copy of the whole becomes a call of memmove.
    flow.state = FlowState::ESTABLISHED;
    flow.last_seen = now;
    flow.link = segment.link;
    if let Err(reason) = insert(tables, key, flow) {
        tables.remove(Table::Established, &reply_key);
        return Err(reason);
    }
    forget(tables, segment, flow);
    tables.count_new_flow(flow.service, flow.backend);
    Ok(())
}

#[inline(always)]
fn insert<A: Address, T: Tables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    flow: &Flow<A>,
) -> Result<(), Reason> {
    tables.insert(Table::Established, key, flow).map_err(|error| match error {
        InsertError::Exists => Reason::PortCollision,
        InsertError::Full => Reason::FlowTableFull,
    })
}

/// Removes both directions from the table of half-open handshakes.
#[inline(always)]
fn forget<A: Address, T: Tables<A>>(tables: &T, segment: &Segment<A>, flow: &Flow<A>) {
    tables.remove(Table::Embryonic, &flow.peer_key(segment.key.protocol));
    tables.remove(Table::Embryonic, &segment.key);
}
