//! Packets of a handshake that isn't complete: the client's SYN was forwarded.

use super::{
    Edits, Family, FamilyTables, InsertError, Packet, Reason, Scratch, Stop, Table, Verdict,
    choice::{self, Attempt},
    established, lasting,
    parse::Segment,
    source_rate,
    tables::{self, find_peer, follow_load, forget},
    transmit,
};
use crate::{
    abi::{
        Answer, Client, ClientKey, Direction, Entry, Flow, FlowKey, FlowState, Stamp, Tick,
        finished,
    },
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

/// A SYN that comes so soon after another, in units of a [`Stamp`], was doubled on the way; after that, it
/// was sent again. About 0.2 s: TCPs wait for a second (RFC 6298), and none for less than this.
const DOUBLED: u32 = (200_000_000 / Stamp::NANOSECONDS) as u32;
/// Where the backend's answer isn't seen, the same in ticks: the second time that a SYN is sent again. After
/// the first, the answer to the one before may still come, and it would be that of another connection.
const TWICE_AGAIN: u32 = 2;

/// What was found of a handshake.
pub(super) enum Found<'t, A: Family> {
    /// It is half-open.
    HalfOpen(Handshake<'t, A>),
    /// There is none, or not any longer.
    Nothing,
    /// Its backend hasn't taken it, and was given up.
    Failed(Attempt),
}

/// The half-open handshake that a segment belongs to. `flow` becomes a copy of its entry.
///
/// One of them may have been evicted, or its port given to another client: then there is no
/// handshake any longer, and a client's SYN starts afresh. So it does where the backend hasn't
/// answered by now, has refused, or takes no more connections.
#[inline(always)]
pub(super) fn find<'t, A: Family, T: FamilyTables<A>>(
    tables: &'t T,
    segment: &Segment<A>,
    flow: &mut Flow<A>,
) -> Found<'t, A> {
    let Some(entry) = tables.find(Table::Embryonic, &segment.key) else { return Found::Nothing };
    *flow = entry.read();
    if flow.state == FlowState::REFUSED {
        tables.remove(Table::Embryonic, &segment.key);
        if segment.flags.opens() {
            return Found::Failed(Attempt::after(flow.finished, flow.backend));
        }
        return Found::Nothing;
    }
    let peer = if flow.forwarding.sees_replies() {
        find_peer(tables, Table::Embryonic, &segment.key, flow)
            .filter(|peer| peer.read().peer_key(segment.key.protocol) == segment.key)
    } else {
        Some(entry)
    };
    let Some(peer) = peer else {
        tables.remove(Table::Embryonic, &segment.key);
        if flow.direction == Direction::ToBackend as u8 {
            tables.add_load(flow.service, flow.backend, -1);
        }
        return Found::Nothing;
    };
    if segment.opens()
        && flow.direction == Direction::ToBackend as u8
        && flow.state == FlowState::SYN
    {
        let takes = tables.backend(flow.backend).is_some_and(|one| one.takes_new_flows != 0);
        // Others aren't told of its silence: it may be this SYN that isn't worth an answer.
        if !takes || is_mute(tables, segment, flow) {
            if flow.forwarding.sees_replies() {
                tables.count_answer(flow.backend, Answer::None);
            }
            forget(tables, Table::Embryonic, &segment.key, flow);
            return Found::Failed(Attempt::after(flow.finished, flow.backend));
        }
    }
    Found::HalfOpen(Handshake { entry, peer })
}

/// Whether the backend has had the time to answer the SYN before this one.
#[inline(always)]
fn is_mute<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    flow: &Flow<A>,
) -> bool {
    let now = tables.now();
    if segment.is_udp() {
        // Not every protocol has answers.
        false
    } else if flow.forwarding.sees_replies() {
        now.stamp().since(Stamp::new(flow.number)) >= DOUBLED
    } else {
        now.tick().since(flow.opened) >= TWICE_AGAIN
    }
}

/// Forwards a segment of a half-open handshake. Its direction is the entry's: a service may lie on an
/// address and port that full NAT sends from, so the receiver doesn't tell.
#[inline(always)]
pub(super) fn forward<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<A>,
    handshake: Handshake<'_, A>,
) -> Result<Verdict, Stop> {
    let Scratch { segment, flow, reply_key, reply, longest, .. } = scratch;
    let segment = &*segment;
    let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
    segment.admit(packet, &settings)?;
    let backend = transmit::backend(tables, segment, flow, longest)?;
    let reason = match Direction::from_u8(flow.direction) {
        Direction::ToBackend => {
            source_rate::admit(tables, &settings, segment)?;
            follow_client(tables, segment, handshake, flow, (reply_key, reply))?
        }
        Direction::ToClient => follow_backend(tables, segment, handshake, flow)?,
    };
    let edits = Edits::NONE;
    Ok(transmit::send(packet, tables, segment, flow, backend, reason, edits)?)
}

/// Follows a client's segment: its SYN again, the acknowledgement that completes the handshake, or
/// whatever else, for the backend to judge.
#[inline(always)]
fn follow_client<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    handshake: Handshake<'_, A>,
    flow: &mut Flow<A>,
    reply: (&mut FlowKey<A>, &mut Flow<A>),
) -> Result<Reason, Stop> {
    established::learn_link(tables, segment, Table::Embryonic, handshake.entry, flow)?;
    if completes(segment, flow) {
        match establish(tables, segment, handshake, flow, reply) {
            // Where no handshake would have to be done again, or the ring leads to the same backend without
            // any entry, it can as well go on like this.
            Err(Reason::FlowTableFull) if segment.is_udp() || !flow.forwarding.sees_replies() => {}
            // Both ends think that they are connected: the client is told otherwise.
            Err(Reason::FlowTableFull) => return Err(Stop::Trouble),
            Err(reason) => return Err(Stop::Refused(reason)),
            Ok(()) => return Ok(Reason::ToBackend),
        }
    }
    if flow.forwarding.sees_replies() {
        flow.number = handshake.peer.read().number;
    }
    handshake.entry.touch(tables.now().tick());
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
    // A RST may be anybody's, and is the backend's to judge.
    let [syn, rst] = [TcpFlags::SYN, TcpFlags::RST].map(|flag| segment.flags.has(flag));
    if !segment.flags.has(TcpFlags::ACK) || syn || rst {
        return false;
    }
    if flow.forwarding.sees_replies() {
        flow.state == FlowState::ANSWERED
            && segment.acknowledgement.wrapping_sub(flow.number) < EARLY_DATA
    } else {
        segment.sequence.wrapping_sub(flow.number) < EARLY_DATA
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
) -> Result<Reason, Stop> {
    if !flow.forwarding.hides_client() {
        established::demand_own_station(tables, segment)?;
    }
    if segment.flags.has(TcpFlags::RST) {
        // One that neither refuses the SYN nor continues behind the SYN-ACK answers something that the client may not
        // have sent, and which it will judge.
        let request = handshake.peer.read();
        if segment.refuses() {
            return Err(Stop::Trouble);
        }
        if request.state == FlowState::ANSWERED && segment.sequence == request.number {
            forget(tables, Table::Embryonic, &segment.key, flow);
        }
    } else if segment.answers() {
        handshake.peer.set_answered(segment.sequence.wrapping_add(1));
        handshake.peer.touch(tables.now().tick());
        if !segment.is_udp() {
            choice::note_answer(tables, flow.backend);
            tables.count_answer(flow.backend, Answer::Taken);
        }
    }
    Ok(Reason::ToClient)
}

/// Moves both directions to the table of established flows. What `reply_key` and `reply` hold before and
/// afterwards is of no interest.
#[inline(always)]
fn establish<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    handshake: Handshake<'_, A>,
    flow: &mut Flow<A>,
    (reply_key, reply): (&mut FlowKey<A>, &mut Flow<A>),
) -> Result<(), Reason> {
    let key = &segment.key;
    let now = tables.now().tick();
    let finished = if segment.flags.has(TcpFlags::FIN) { finished::CLIENT } else { 0 };
    *reply_key = flow.peer_key(key.protocol);
    if flow.forwarding.sees_replies() {
        *reply = handshake.peer.read();
        reply.state = FlowState::after(finished);
        reply.finished = finished;
        reply.last_seen = now;
        reply.link = segment.link;
        if finished != 0 {
            reply.opened = Tick::of_number(segment.following());
        }
        insert(tables, reply_key, reply)?;
        flow.number = reply.number;
    }

    follow_load(tables, flow, FlowState::after(finished));
    // Changed in place: a copy of the whole becomes a call of memmove.
    flow.state = FlowState::after(finished);
    flow.finished = finished;
    flow.last_seen = now;
    flow.link = segment.link;
    if let Err(reason) = insert(tables, key, flow) {
        if flow.forwarding.sees_replies() {
            tables.remove(Table::Established, reply_key);
            lasting::erase(tables, reply_key, reply, None);
        }
        return Err(reason);
    }
    tables::remove(tables, Table::Embryonic, key, flow);
    if !segment.is_udp() {
        tables.count_new_flow(flow.service, flow.backend);
    }
    remember_client(tables, key, flow, now);
    Ok(())
}

/// Remembers which backend the client has, where its service has affinity.
#[inline(always)]
fn remember_client<A: Family, T: FamilyTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    flow: &Flow<A>,
    now: Tick,
) {
    let backend = flow.backend;
    if tables.backend(backend).is_some_and(|backend| backend.remembers_clients != 0) {
        let key = ClientKey { service: flow.service, address: key.source };
        tables.remember_client(&key, Client { backend, last_seen: now });
    }
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
