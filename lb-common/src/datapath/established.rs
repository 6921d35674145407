//! Packets of a connection whose handshake is complete.

use super::{
    Family, FamilyTables, Reason, Stop, Table, choice, lasting, nat,
    parse::Segment,
    source_rate,
    tables::{find_peer, follow_load},
};
use crate::{
    abi::{Direction, Entry, Flow, FlowState, Tick, finished},
    wire::TcpFlags,
};

/// Follows a segment of the flow that `flow` is a copy of and `entry` the place.
#[inline(always)]
pub(super) fn follow<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    entry: Entry<'_, Flow<A>>,
    flow: &Flow<A>,
) -> Result<Reason, Stop> {
    let direction = Direction::from_u8(flow.direction);
    let mut has_moved = false;
    let reason = match direction {
        Direction::ToBackend => {
            if seems_over(flow) && segment.opens() {
                return Err(Stop::Trouble);
            }
            if segment.flags.opens() {
                let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
                source_rate::admit(tables, &settings, segment)?;
            }
            has_moved = !segment.link.same(flow.link);
            learn_link(tables, segment, Table::Established, entry, flow)?;
            Reason::ToBackend
        }
        Direction::ToClient => {
            if !flow.forwarding.hides_client() {
                // To the client's own address: it may also have been flooded to us.
                demand_own_station(tables, segment)?;
            }
            if flow.state == FlowState::CLOSED && segment.refuses() {
                return Err(Stop::Trouble);
            }
            Reason::ToClient
        }
    };
    let change = follow_state(tables, segment, entry, flow, direction);
    // By direct return, a trace says nothing of where the client is.
    if (has_moved && flow.forwarding.sees_replies()) || change.is_one {
        lasting::erase(tables, &segment.key, flow, change.opened);
    }
    if finished::surely(change.finished) && !finished::surely(flow.finished) {
        nat::give_back(tables, flow, &segment.key);
    }
    entry.touch(tables.now().tick());
    Ok(reason)
}

/// Whether a flow is closed, as far as can be seen here: by direct return, that is half of it.
#[inline(always)]
fn seems_over<A: Family>(flow: &Flow<A>) -> bool {
    flow.state == FlowState::CLOSED
        || (flow.state == FlowState::CLOSING && !flow.forwarding.sees_replies())
}

/// Whether a segment begins a connection that has nothing to do with the flow that its key names: its
/// client uses the port again.
///
/// FIN and RST in the client's name may have been sent by anybody, who doesn't know the sequence numbers: so it takes what
/// only the backend can know. Until then it is the backend that judges whether the connection is over; that it says nothing
/// means nothing, since not every SYN is worth an answer. One that the backend has reset itself is over, but goes on there as
/// long as the backend takes new flows, and hasn't just refused one. One that is down is left.
#[inline(always)]
pub(super) fn begins_anew<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    flow: &Flow<A>,
) -> bool {
    if !segment.flags.opens() || flow.direction != Direction::ToBackend as u8 {
        return false;
    }
    let ended = flow.finished;
    if ended & finished::BOTH_SURELY == finished::BOTH_SURELY {
        return true;
    }
    if !seems_over(flow) {
        return false;
    }
    let Some(backend) = tables.backend(flow.backend) else { return true };
    backend.is_down != 0
        || (ended & finished::BACKEND_RESET != 0
            && (backend.takes_new_flows == 0 || choice::is_spared(tables, flow.backend)))
}

/// Demands that the frame was sent to our own hardware address. Returns how long a datagram back may be, in
/// bytes.
#[inline(always)]
pub(super) fn demand_own_station<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
) -> Result<u16, Reason> {
    let longest = tables.local_mac(&segment.station());
    longest.map(|longest| longest as u16).ok_or(Reason::OtherStation)
}

/// Notes where the client's packets come from, when that has changed: replies go back there.
#[inline(always)]
pub(super) fn learn_link<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    table: Table,
    entry: Entry<'_, Flow<A>>,
    flow: &Flow<A>,
) -> Result<(), Reason> {
    let link = segment.link;
    if link.same(flow.link) {
        return Ok(());
    }
    if link.station.is_group() {
        return Err(Reason::InvalidSource);
    }
    let longest = demand_own_station(tables, segment)?;
    entry.set_link(link, longest);
    if let Some(peer) = find_peer(tables, table, &segment.key, flow) {
        peer.set_link(link, longest);
    }
    Ok(())
}

/// What became of a flow's state.
struct Change {
    /// Whether anything did.
    is_one: bool,
    /// As [`Flow::finished`], now.
    finished: u8,
    /// When the flow was opened, where only its peer knows.
    opened: Option<Tick>,
}

/// Follows the connection's end, in both directions' entries (RFC 9293, section 3.6).
///
/// Sequence numbers aren't followed, so whoever knows the ports can send FIN and RST in a client's name. The
/// ends don't believe it; what the named one sends next takes a RST back here, and a FIN counts for all purposes once the
/// backend has acknowledged it.
#[inline(always)]
fn follow_state<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    entry: Entry<'_, Flow<A>>,
    flow: &Flow<A>,
    direction: Direction,
) -> Change {
    if segment.is_udp() {
        return Change { is_one: false, finished: flow.finished, opened: None };
    }
    let (fin, reset) = match direction {
        Direction::ToBackend => (finished::CLIENT, finished::CLIENT_RESET),
        Direction::ToClient => (finished::BACKEND, finished::BACKEND_RESET),
    };
    let mut ended = flow.finished;
    if direction == Direction::ToClient
        && ended & finished::CLIENT != 0
        && segment.flags.has(TcpFlags::ACK)
        && segment.acknowledgement == flow.end_of_client()
    {
        ended |= finished::CLIENT_ACKNOWLEDGED;
    }
    let mut begins_anew = false;
    let mut end_of_client = None;
    if segment.flags.has(TcpFlags::RST) {
        ended |= reset;
    } else if !segment.flags.opens() {
        ended &= !reset;
        if segment.flags.has(TcpFlags::FIN) {
            ended |= fin;
            if direction == Direction::ToBackend && ended & finished::CLIENT_ACKNOWLEDGED == 0 {
                end_of_client = Some(segment.following());
            }
        }
        if segment.flags.answers() && direction == Direction::ToClient {
            // The client's port in use again, and the backend's agreement.
            begins_anew = ended != 0;
            ended = 0;
        }
    }
    if ended == flow.finished && end_of_client.is_none() {
        return Change { is_one: false, finished: ended, opened: None };
    }
    let state = FlowState::after(ended);
    let peer = find_peer(tables, Table::Established, &segment.key, flow);
    let opened = peer.filter(|_| direction == Direction::ToClient).map(Entry::opened);
    if let (Some(peer), Some(number)) = (peer, end_of_client) {
        peer.set_end_of_client(number);
    }
    if begins_anew {
        let now = tables.now().tick();
        tables.count_new_flow(flow.service, flow.backend);
        entry.set_opened(now);
        if let Some(peer) = peer {
            peer.set_opened(now);
        }
    }
    follow_load(tables, flow, state);
    entry.set_state(state, ended);
    if let Some(peer) = peer {
        peer.set_state(state, ended);
    }
    Change { is_one: true, finished: ended, opened }
}
