//! What befalls a flow whose backend is down, or has refused it, or that there is no room for.

use super::{
    Decision, Edits, Family, FamilyTables, NETWORK_OFFSET, Packet, Reason, Scratch, Table, Verdict,
    answer,
    choice::{self, Attempt},
    established, nat, opening,
    parse::Segment,
    tables::{find_peer, forget},
    transmit,
};
use crate::{
    abi::{Direction, Entry, Fate, Flow, FlowState, finished},
    wire::{EthernetHeader, NetworkHeader, PROTOCOL_TCP, TcpFlags, TcpHeader},
};

/// To so many backends a connection is led at most before its client is told that one refused it.
const MOST_TRIES: u8 = 4;

/// Decides about a segment whose flow's backend is down, or that is a backend's refusal, or that completes a
/// handshake when the table of established flows is full.
#[inline(always)]
pub(super) fn decide<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<A>,
) -> Decision {
    let Scratch { segment, flow, .. } = scratch;
    let mut table = Table::Established;
    let mut found = tables.find(table, &segment.key);
    if found.is_none() {
        table = Table::Embryonic;
        found = tables.find(table, &segment.key);
    }
    let Some(entry) = found else {
        return Decision::refusing(packet, Reason::NoFlow);
    };
    *flow = entry.read();
    let result = match Direction::from_u8(flow.direction) {
        Direction::ToClient => refused(packet, tables, scratch, table),
        Direction::ToBackend => {
            if let Err(reason) = established::demand_own_station(tables, segment) {
                return Decision::refusing(packet, reason);
            }
            if begins_anew(tables, segment, flow) {
                forget(tables, table, &segment.key, flow);
                return opening::leave(packet, segment);
            }
            let backend = tables.backend(flow.backend);
            let reason = match backend {
                Some(backend) if backend.fate == Fate::Keep => Reason::FlowTableFull,
                _ => Reason::BackendDown,
            };
            reset(packet, tables, segment, (table, entry), flow, reason)
        }
    };
    match result {
        Ok(verdict) => Decision::made(packet, verdict),
        Err(reason) => Decision::refusing(packet, reason),
    }
}

/// Whether a client's packet is taken for one of no flow.
#[inline(always)]
fn begins_anew<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    flow: &Flow<A>,
) -> bool {
    let moves = tables.backend(flow.backend).is_none_or(|backend| backend.fate == Fate::Move);
    moves || segment.opens()
}

/// Turns a client's segment into the reset that answers it (RFC 9293, section 3.10.7.1), for that reason. Its
/// flow is over.
#[inline(always)]
fn reset<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    segment: &Segment<A>,
    (table, entry): (Table, Entry<'_, Flow<A>>),
    flow: &Flow<A>,
    reason: Reason,
) -> Result<Verdict, Reason> {
    let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
    segment.admit(packet, &settings)?;
    if !segment.flags.has(TcpFlags::ACK) || segment.flags.has(TcpFlags::RST) {
        // It closes the connection itself, and nobody is there to hear it.
        return Err(Reason::NoBackend);
    }
    if flow.state.is_half_open() {
        forget(tables, table, &segment.key, flow);
    } else if flow.state != FlowState::CLOSED {
        let ended = flow.finished | finished::BACKEND_RESET;
        entry.set_state(FlowState::CLOSED, ended);
        if let Some(peer) = find_peer(tables, table, &segment.key, flow) {
            peer.set_state(FlowState::CLOSED, ended);
        }
        nat::give_back(tables, flow, &segment.key);
    }
    let ethernet: EthernetHeader = packet.read(0).ok_or(Reason::ShortFrame)?;
    let length = NETWORK_OFFSET + A::Header::LENGTH + TcpHeader::MINIMUM_LENGTH;
    packet.truncate(length).ok_or(Reason::ShortFrame)?;
    let key = &segment.key;
    let payload_length = TcpHeader::MINIMUM_LENGTH as u16;
    let sum = A::pseudo_header_sum(key.source, key.destination, PROTOCOL_TCP, payload_length);
    let header =
        TcpHeader::reset(key.destination_port, key.source_port, segment.acknowledgement, sum);
    packet.write(NETWORK_OFFSET + A::Header::LENGTH, header).ok_or(Reason::ShortFrame)?;
    let ends = (key.destination, key.source);
    answer::send_back(packet, &ethernet, ends, PROTOCOL_TCP, payload_length, reason)
}

/// Withholds a backend's refusal from the client, whose next SYN then goes elsewhere, or lets it pass
/// where there is nowhere else to go. A closed flow stays as it is, whose client's port is in use again: others
/// than its backend could have sent both the reset that closed it and this one.
#[inline(always)]
fn refused<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<A>,
    table: Table,
) -> Result<Verdict, Reason> {
    let Scratch { segment, flow, longest, .. } = scratch;
    let segment = &*segment;
    let is_half_open = flow.state.is_half_open();
    let peer = find_peer(tables, table, &segment.key, flow).ok_or(Reason::NoFlow)?;
    let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
    segment.admit(packet, &settings)?;
    if !flow.forwarding.hides_client() {
        established::demand_own_station(tables, segment)?;
    }
    choice::note_refusal(tables, flow.backend);

    let tries = if is_half_open { peer.read().finished } else { 0 };
    let attempt = Attempt::after(tries, flow.backend);
    let key = flow.peer_key(segment.key.protocol);
    let picked = opening::service(tables, &key)
        .and_then(|service| choice::pick(tables, &key, &service, &settings, attempt).ok());
    let is_elsewhere = picked.is_some_and(|index| choice::is_elsewhere(tables, index, attempt));
    if is_elsewhere && tries + 1 < MOST_TRIES {
        if is_half_open {
            nat::give_back(tables, flow, &segment.key);
            tables.remove(Table::Embryonic, &segment.key);
            peer.set_state(FlowState::REFUSED, tries);
        }
        return Err(Reason::RefusalWithheld);
    }
    transmit::backend(tables, segment, flow, longest)?;
    if is_half_open {
        forget(tables, Table::Embryonic, &segment.key, flow);
    }
    transmit::send(packet, tables, segment, flow, None, Reason::ToClient, Edits::NONE)
}
