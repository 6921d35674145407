//! Packets of a connection whose handshake is complete.

use super::{
    Family, FamilyTables, Reason, Stop, Table, choice, nat, parse::Segment, tables::find_peer,
};
use crate::{
    abi::{Direction, Entry, Flow, FlowState, Link, LocalMac, finished},
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
    let reason = match direction {
        Direction::ToBackend => {
            if flow.state == FlowState::CLOSED && segment.opens() {
                return Err(Stop::Trouble);
            }
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
    follow_state(tables, segment, entry, flow, direction);
    entry.touch(tables.now().tick());
    Ok(reason)
}

/// Whether a segment begins a connection that has nothing to do with the flow that its key names: its
/// client uses the port again.
///
/// A reset in the client's name may have been sent by anybody: then it is the backend that judges whether the
/// connection is over. One that the backend has reset itself is, but goes on there as long as the backend takes new
/// flows, and hasn't just refused one. One that doesn't answer such a SYN is left with the next.
#[inline(always)]
pub(super) fn begins_anew<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    flow: &Flow<A>,
) -> bool {
    if !segment.flags.opens() || flow.direction != Direction::ToBackend as u8 {
        return false;
    }
    if flow.forwarding.sees_replies() {
        let backend = tables.backend(flow.backend);
        flow.finished & finished::BOTH == finished::BOTH
            || (flow.finished & finished::UNANSWERED != 0
                && tables.now().tick().since(flow.last_seen) > 0)
            || (flow.finished & finished::BACKEND_RESET != 0
                && (backend.is_none_or(|backend| backend.takes_new_flows == 0)
                    || choice::is_spared(tables, flow.backend)))
    } else {
        // A client that has sent FIN and begins anew is all there is to know.
        flow.state == FlowState::CLOSED || flow.state == FlowState::CLOSING
    }
}

/// Demands that the frame was sent to our own hardware address. Returns how long a datagram back may be, in
/// bytes.
#[inline(always)]
pub(super) fn demand_own_station<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
) -> Result<u16, Reason> {
    let Link { interface, own, vlans, .. } = segment.link;
    let own = LocalMac { interface, address: own, reserved: 0, vlans };
    tables.local_mac(&own).map(|longest| longest as u16).ok_or(Reason::OtherStation)
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

/// Follows the connection's end, in both directions' entries (RFC 9293, section 3.6).
///
/// Sequence numbers aren't followed, so whoever knows the ports can send RST in another's name. The
/// ends don't believe it; what the named one sends next takes it back here.
#[inline(always)]
fn follow_state<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    entry: Entry<'_, Flow<A>>,
    flow: &Flow<A>,
    direction: Direction,
) {
    if segment.is_udp() {
        return;
    }
    let (fin, reset) = match direction {
        Direction::ToBackend => (finished::CLIENT, finished::CLIENT_RESET),
        Direction::ToClient => (finished::BACKEND, finished::BACKEND_RESET),
    };
    let mut ended = flow.finished;
    if direction == Direction::ToClient {
        ended &= !finished::UNANSWERED;
    }
    if segment.flags.has(TcpFlags::RST) {
        ended |= reset;
    } else if !segment.flags.opens() {
        ended &= !reset;
        if segment.flags.has(TcpFlags::FIN) {
            ended |= fin;
        }
        if segment.flags.answers() && direction == Direction::ToClient {
            // The client's port in use again, and the backend's agreement.
            ended = 0;
            if flow.state == FlowState::CLOSED {
                entry.set_opened(tables.now().tick());
            }
        }
    }
    if ended == flow.finished {
        return;
    }
    if ended == 0 && segment.flags.answers() {
        tables.count_new_flow(flow.service, flow.backend);
    }
    let state = FlowState::after(ended);
    if state == FlowState::CLOSED && flow.state != FlowState::CLOSED {
        nat::give_back(tables, flow, &segment.key);
    }
    entry.set_state(state, ended);
    if let Some(peer) = find_peer(tables, Table::Established, &segment.key, flow) {
        peer.set_state(state, ended);
    }
}
