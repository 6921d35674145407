//! Packets of a connection whose handshake is complete.

use super::{Packet, Reason, Table, Tables, Verdict, parse::Segment, rewrite};
use crate::{
    abi::{Direction, Entry, Flow, FlowState, LocalMac, finished},
    wire::{Address, TcpFlags},
};

/// Forwards a segment of the flow that `flow` is a copy of and `entry` the place.
#[inline(always)]
pub(super) fn forward<A: Address, P: Packet, T: Tables<A>>(
    packet: &mut P,
    tables: &T,
    segment: &Segment<A>,
    entry: Entry<'_, Flow<A>>,
    flow: &Flow<A>,
) -> Result<Verdict, Reason> {
    let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
    segment.admit(packet, &settings)?;
    let direction = Direction::from_u8(flow.direction);
    let (link, reason) = match direction {
        Direction::ToBackend => {
            learn_link(tables, segment, Table::Established, entry, flow)?;
            let backend = tables.backend(flow.backend).ok_or(Reason::TablesIncomplete)?;
            if backend.link.interface == 0 {
                return Err(Reason::NextHopUnknown);
            }
            (backend.link, Reason::ToBackend)
        }
        Direction::ToClient => (flow.link, Reason::ToClient),
    };
    follow_state(tables, segment, entry, flow, direction);
    entry.touch(tables.now());
    rewrite::forward(packet, tables, segment, flow, link, reason)
}

/// Notes where the client's packets come from, when that has changed: replies go back there.
#[inline(always)]
pub(super) fn learn_link<A: Address, T: Tables<A>>(
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
    let own = LocalMac { interface: link.interface, address: link.own, reserved: 0 };
    if !tables.is_local_mac(&own) {
        return Err(Reason::OtherStation);
    }
    entry.set_link(link);
    if let Some(peer) = tables.find(table, &flow.peer_key(segment.key.protocol)) {
        peer.set_link(link);
    }
    Ok(())
}

/// Follows the connection's end, in both directions' entries (RFC 9293, section 3.6).
///
/// Sequence numbers aren't followed, so whoever knows the ports can send RST in another's name. The
/// ends don't believe it; what the named one sends next takes it back here.
#[inline(always)]
fn follow_state<A: Address, T: Tables<A>>(
    tables: &T,
    segment: &Segment<A>,
    entry: Entry<'_, Flow<A>>,
    flow: &Flow<A>,
    direction: Direction,
) {
    let (fin, reset) = match direction {
        Direction::ToBackend => (finished::CLIENT, finished::CLIENT_RESET),
        Direction::ToClient => (finished::BACKEND, finished::BACKEND_RESET),
    };
    let mut ended = flow.finished;
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
        }
    }
    if ended == flow.finished {
        return;
    }
    if ended == 0 && segment.flags.answers() {
        tables.count_new_flow(flow.service, flow.backend);
    }
    let state = FlowState::after(ended);
    entry.set_state(state, ended);
    if let Some(peer) = tables.find(Table::Established, &flow.peer_key(segment.key.protocol)) {
        peer.set_state(state, ended);
    }
}
