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
#[inline(always)]
fn follow_state<A: Address, T: Tables<A>>(
    tables: &T,
    segment: &Segment<A>,
    entry: Entry<'_, Flow<A>>,
    flow: &Flow<A>,
    direction: Direction,
) {
    if !segment.flags.has(TcpFlags::FIN.union(TcpFlags::RST)) {
        return;
    }
    let mut ended = flow.finished;
    if segment.flags.has(TcpFlags::FIN) {
        ended |= match direction {
            Direction::ToBackend => finished::CLIENT,
            Direction::ToClient => finished::BACKEND,
        };
    }
    let closed = segment.flags.has(TcpFlags::RST)
        || ended == finished::BOTH
        || flow.state == FlowState::CLOSED;
    let state = if closed { FlowState::CLOSED } else { FlowState::CLOSING };
    if state == flow.state && ended == flow.finished {
        return;
    }
    entry.set_state(state, ended);
    if let Some(peer) = tables.find(Table::Established, &flow.peer_key(segment.key.protocol)) {
        peer.set_state(state, ended);
    }
}
