//! Packets of a handshake that isn't complete: the client's SYN was forwarded.

use super::{
    Family, FamilyTables, InsertError, Reason, Table, established, opening,
    parse::Segment,
    tables::{find_peer, forget},
};
use crate::{
    abi::{Direction, Entry, Flow, FlowKey, FlowState, finished},
    wire::TcpFlags,
};

/// The two entries of a half-open handshake.
#[derive(Clone, Copy)]
pub(super) struct Handshake<'t, A: Family> {
    /// The segment's own direction.
    entry: Entry<'t, Flow<A>>,
    /// The other one; the same where replies don't pass through us.
    peer: Entry<'t, Flow<A>>,
}

/// How much the client's first acknowledgement may acknowledge beside the SYN, in bytes: a backend
/// that takes data with the SYN (RFC 7413) answers with data before the handshake is complete.
const EARLY_DATA: u32 = 1 << 16;

/// The half-open handshake that a segment belongs to. `flow` becomes a copy of its entry.
///
/// One of them may have been evicted, or its port given to another client: then there is no
/// handshake any longer, and a client's SYN starts afresh. So it does where the backend hasn't
/// answered and new connections go elsewhere by now.
#[inline(always)]
pub(super) fn find<'t, A: Family, T: FamilyTables<A>>(
    tables: &'t T,
    segment: &Segment<A>,
    flow: &mut Flow<A>,
) -> Option<Handshake<'t, A>> {
    let entry = tables.find(Table::Embryonic, &segment.key)?;
    *flow = entry.read();
    let peer = if flow.forwarding.sees_replies() {
        find_peer(tables, Table::Embryonic, &segment.key, flow)
            .filter(|peer| peer.read().peer_key(segment.key.protocol) == segment.key)
    } else {
        Some(entry)
    };
    let Some(peer) = peer else {
        tables.remove(Table::Embryonic, &segment.key);
        return None;
    };
    if segment.opens()
        && flow.direction == Direction::ToBackend as u8
        && flow.state == FlowState::SYN
        && !opening::would_pick(tables, segment, flow.backend)
    {
        forget(tables, Table::Embryonic, &segment.key, flow);
        return None;
    }
    Some(Handshake { entry, peer })
}

/// Follows a segment of a half-open handshake. Its direction is the entry's: a service may lie on an
/// address and port that full NAT sends from, so the receiver doesn't tell.
#[inline(always)]
pub(super) fn follow<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    handshake: Handshake<'_, A>,
    flow: &mut Flow<A>,
) -> Result<Reason, Reason> {
    match Direction::from_u8(flow.direction) {
        Direction::ToBackend => follow_client(tables, segment, handshake, flow),
        Direction::ToClient => follow_backend(tables, segment, handshake, flow),
    }
}

/// Follows a client's segment: its SYN again, the acknowledgement that completes the handshake, or
/// whatever else, for the backend to judge.
#[inline(always)]
fn follow_client<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    handshake: Handshake<'_, A>,
    flow: &mut Flow<A>,
) -> Result<Reason, Reason> {
    established::learn_link(tables, segment, Table::Embryonic, handshake.entry, flow)?;
    if segment.flags.has(TcpFlags::RST) {
        forget(tables, Table::Embryonic, &segment.key, flow);
        return Ok(Reason::ToBackend);
    }
    if completes(segment, flow) {
        match establish(tables, segment, handshake, flow) {
            // Where no handshake would have to be done again, or the ring leads to the same backend without
            // any entry, it can as well go on like this.
            Err(Reason::FlowTableFull) if segment.is_udp() || !flow.forwarding.sees_replies() => {}
            Err(reason) => return Err(reason),
            Ok(()) => return Ok(Reason::ToBackend),
        }
    }
    handshake.entry.touch(tables.now());
    Ok(Reason::ToBackend)
}

/// Whether a client's segment completes the handshake: it acknowledges the backend's SYN. Where
/// that isn't seen, the client goes on behind its own. By UDP, both ends have sent something, or,
/// where that isn't seen, the client twice.
#[inline(always)]
fn completes<A: Family>(segment: &Segment<A>, flow: &Flow<A>) -> bool {
    if segment.is_udp() {
        return flow.state == FlowState::ANSWERED || !flow.forwarding.sees_replies();
    }
    if !segment.flags.has(TcpFlags::ACK) || segment.flags.has(TcpFlags::SYN) {
        return false;
    }
    if flow.forwarding.sees_replies() {
        flow.state == FlowState::ANSWERED
            && segment.acknowledgement.wrapping_sub(flow.expected) < EARLY_DATA
    } else {
        segment.sequence.wrapping_sub(flow.expected) < EARLY_DATA
    }
}

/// Follows a backend's segment: its SYN-ACK, its refusal, or whatever else, for the client to
/// judge.
#[inline(always)]
fn follow_backend<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    handshake: Handshake<'_, A>,
    flow: &Flow<A>,
) -> Result<Reason, Reason> {
    if !flow.forwarding.hides_client() {
        established::demand_own_station(tables, segment)?;
    }
    if segment.flags.has(TcpFlags::RST) {
        forget(tables, Table::Embryonic, &segment.key, flow);
    } else if segment.answers() {
        handshake.peer.set_answered(segment.sequence.wrapping_add(1));
        handshake.peer.touch(tables.now());
    }
    Ok(Reason::ToClient)
}

/// Moves both directions to the table of established flows.
#[inline(always)]
fn establish<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    handshake: Handshake<'_, A>,
    flow: &mut Flow<A>,
) -> Result<(), Reason> {
    let key = &segment.key;
    let now = tables.now();
    let finished = if segment.flags.has(TcpFlags::FIN) { finished::CLIENT } else { 0 };
    let reply_key = flow.peer_key(key.protocol);
    if flow.forwarding.sees_replies() {
        let mut reply = handshake.peer.read();
        reply.state = FlowState::after(finished);
        reply.finished = finished;
        reply.last_seen = now;
        reply.link = segment.link;
        insert(tables, &reply_key, &reply)?;
    }

    // Changed in place: a copy of the whole becomes a call of memmove.
    flow.state = FlowState::after(finished);
    flow.finished = finished;
    flow.last_seen = now;
    flow.link = segment.link;
    if let Err(reason) = insert(tables, key, flow) {
        if flow.forwarding.sees_replies() {
            tables.remove(Table::Established, &reply_key);
        }
        return Err(reason);
    }
    forget(tables, Table::Embryonic, key, flow);
    if !segment.is_udp() {
        tables.count_new_flow(flow.service, flow.backend);
    }
    Ok(())
}

#[inline(always)]
fn insert<A: Family, T: FamilyTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    flow: &Flow<A>,
) -> Result<(), Reason> {
    tables.insert(Table::Established, key, flow).map_err(|error| match error {
        InsertError::Exists => Reason::PortCollision,
        InsertError::Full => Reason::FlowTableFull,
    })
}
