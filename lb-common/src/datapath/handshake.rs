//! Packets of a handshake that isn't complete: the client's SYN was forwarded.

use super::{
    InsertError, Packet, Reason, Table, Tables, Verdict, established, opening, parse::Segment,
    rewrite,
};
use crate::{
    abi::{Direction, Entry, Flow, FlowKey, FlowState, finished},
    wire::{Address, TcpFlags},
};

/// The two entries of a half-open handshake.
#[derive(Clone, Copy)]
pub(super) struct Handshake<'t, A: Address> {
    /// The segment's own direction.
    entry: Entry<'t, Flow<A>>,
    /// The other one.
    peer: Entry<'t, Flow<A>>,
}

/// How much the client's first acknowledgement may acknowledge beside the SYN, in bytes: a backend
/// that takes data with the SYN (RFC 7413) answers with data before the handshake is complete.
const EARLY_DATA: u32 = 1 << 16;

/// The half-open handshake that a segment belongs to.
///
/// One of them may have been evicted, or its port given to another client: then there is no
/// handshake any longer, and a client's SYN starts afresh. So it does where the backend hasn't
/// answered and new connections go elsewhere by now.
#[inline(always)]
pub(super) fn find<'t, A: Address, T: Tables<A>>(
    tables: &'t T,
    segment: &Segment<A>,
) -> Option<Handshake<'t, A>> {
    let entry = tables.find(Table::Embryonic, &segment.key)?;
    let flow = entry.read();
    let peer_key = flow.peer_key(segment.key.protocol);
    let peer = tables
        .find(Table::Embryonic, &peer_key)
        .filter(|peer| peer.read().peer_key(segment.key.protocol) == segment.key);
    let Some(peer) = peer else {
        tables.remove(Table::Embryonic, &segment.key);
        return None;
    };
    if segment.flags.opens()
        && flow.direction == Direction::ToBackend as u8
        && flow.answered == 0
        && !opening::would_pick(tables, segment, flow.backend)
    {
        tables.remove(Table::Embryonic, &peer_key);
        tables.remove(Table::Embryonic, &segment.key);
        return None;
    }
    Some(Handshake { entry, peer })
}

/// Forwards a segment of a half-open handshake. Its direction is the entry's: a service may lie on
/// an address and port that full NAT sends from, so the receiver doesn't tell.
#[inline(always)]
pub(super) fn forward<A: Address, P: Packet, T: Tables<A>>(
    packet: &mut P,
    tables: &T,
    segment: &Segment<A>,
    handshake: Handshake<'_, A>,
) -> Result<Verdict, Reason> {
    let mut flow = handshake.entry.read();
    let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
    segment.admit(packet, &settings)?;
    match Direction::from_u8(flow.direction) {
        Direction::ToBackend => from_client(packet, tables, segment, handshake, &mut flow),
        Direction::ToClient => from_backend(packet, tables, segment, handshake, &flow),
    }
}

/// Forwards a client's segment: its SYN again, the acknowledgement that completes the handshake, or
/// whatever else, for the backend to judge.
#[inline(always)]
fn from_client<A: Address, P: Packet, T: Tables<A>>(
    packet: &mut P,
    tables: &T,
    segment: &Segment<A>,
    handshake: Handshake<'_, A>,
    flow: &mut Flow<A>,
) -> Result<Verdict, Reason> {
    let backend = tables.backend(flow.backend).ok_or(Reason::TablesIncomplete)?;
    if backend.link.interface == 0 {
        return Err(Reason::NextHopUnknown);
    }
    established::learn_link(tables, segment, Table::Embryonic, handshake.entry, flow)?;

    if segment.flags.has(TcpFlags::RST) {
        forget(tables, segment, flow);
    } else if flow.answered == 1
        && segment.flags.has(TcpFlags::ACK)
        && segment.acknowledgement.wrapping_sub(flow.expected_acknowledgement) < EARLY_DATA
    {
        establish(tables, segment, handshake, flow)?;
    } else {
        handshake.entry.touch(tables.now());
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
    handshake: Handshake<'_, A>,
    flow: &Flow<A>,
) -> Result<Verdict, Reason> {
    if segment.flags.has(TcpFlags::RST) {
        forget(tables, segment, flow);
    } else if segment.flags.answers() {
        handshake.peer.set_answered(segment.sequence.wrapping_add(1));
        handshake.peer.touch(tables.now());
    }
    rewrite::forward(packet, tables, segment, flow, flow.link, Reason::ToClient)
}

/// Moves both directions to the table of established flows.
#[inline(always)]
fn establish<A: Address, T: Tables<A>>(
    tables: &T,
    segment: &Segment<A>,
    handshake: Handshake<'_, A>,
    flow: &mut Flow<A>,
) -> Result<(), Reason> {
    let key = &segment.key;
    let reply_key = flow.peer_key(key.protocol);
    let mut reply = handshake.peer.read();
    let now = tables.now();
    let finished = if segment.flags.has(TcpFlags::FIN) { finished::CLIENT } else { 0 };
    reply.state = FlowState::after(finished);
    reply.finished = finished;
    reply.last_seen = now;
    reply.link = segment.link;
    insert(tables, &reply_key, &reply)?;

    // Changed in place: a copy of the whole becomes a call of memmove.
    flow.state = FlowState::after(finished);
    flow.finished = finished;
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
