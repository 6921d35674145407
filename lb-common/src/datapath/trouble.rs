//! What befalls a flow whose backend is down, or has refused it, or that there is no room for.

use core::hint;

use super::{
    Decision, Edits, Family, FamilyTables, NETWORK_OFFSET, Packet, Reason, Scratch, Table, Verdict,
    answer,
    choice::{self, Attempt},
    established, lasting, nat, opening,
    parse::Segment,
    source_rate,
    tables::{find_peer, follow_load, forget, take_out},
    transmit,
};
use crate::{
    abi::{Answer, Direction, Entry, Fate, Flow, FlowKey, FlowState, Settings, finished},
    wire::{EthernetHeader, NetworkHeader, PROTOCOL_TCP, TcpFlags, TcpHeader},
};

/// To so many backends a connection is led at most before its client is told that one refused it.
const MOST_TRIES: u8 = 4;

/// Decides about a segment whose flow's backend is down, or that is a backend's refusal, or that completes a
/// handshake when the table of established flows is full, or that opens a connection from a port whose last one was
/// closed by a reset.
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
    // Whether it is over goes through memory, of which the verifier knows nothing: else it would look at both for each way here.
    let mut is_over = false;
    let decision = handle(packet, tables, scratch, (table, entry), &mut is_over);
    scratch.memory[0] = is_over.into();
    let Scratch { segment, flow, memory: [is_over, _], .. } = hint::black_box(scratch);
    // Whatever has changed; whoever gets its port next finds no trace.
    lasting::erase(tables, &segment.key, flow, None);
    if *is_over != 0 && !flow.is_surely_over() {
        nat::give_back(tables, flow, &segment.key);
    }
    decision
}

/// Does so, with what stands in the flow's entry in `scratch`. Whether that flow `is_over`, whose
/// port isn't given back yet, it says when it returns.
#[inline(always)]
fn handle<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<A>,
    (table, entry): (Table, Entry<'_, Flow<A>>),
    is_over: &mut bool,
) -> Decision {
    let Scratch { segment, flow, .. } = scratch;
    let result = match Direction::from_u8(flow.direction) {
        Direction::ToClient => refused(packet, tables, scratch, (table, entry), is_over),
        Direction::ToBackend => {
            if let Err(reason) = established::demand_own_station(tables, segment) {
                return Decision::refusing(packet, reason);
            }
            let fate = tables.backend(flow.backend).map_or(Fate::Move, |backend| backend.fate);
            let reason = match fate {
                Fate::Keep if table == Table::Established => None,
                Fate::Keep => Some(Reason::FlowTableFull),
                Fate::Reset if !segment.opens() => Some(Reason::BackendDown),
                // It is taken for a packet of no flow.
                _ => {
                    take_out(tables, table, &segment.key, flow);
                    *is_over = true;
                    return opening::leave(packet, segment, false);
                }
            };
            match reason {
                None => go_on(packet, tables, scratch, entry),
                Some(reason) => {
                    reset(packet, tables, segment, (table, entry), flow, is_over, reason)
                }
            }
        }
    };
    match result {
        Ok(verdict) => Decision::made(packet, verdict),
        // Nobody is told here how much would do.
        Err(Reason::NeedsFragmentation) => Decision::refusing(packet, Reason::TooBig),
        Err(reason) => Decision::refusing(packet, reason),
    }
}

/// Lets a client's segment go on to its backend. With a SYN, the client opens another connection from a port whose
/// last one was closed by a reset, which anybody may have sent: so the same backend judges it. It must be let in as
/// by any other SYN.
#[inline(always)]
fn go_on<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<A>,
    entry: Entry<'_, Flow<A>>,
) -> Result<Verdict, Reason> {
    let Scratch { segment, flow, longest, .. } = scratch;
    let segment = &*segment;
    let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
    segment.admit(packet, &settings)?;
    if segment.opens() {
        let service = opening::service(tables, &segment.key).ok_or(Reason::NoService)?;
        opening::demand_access(tables, &service, segment.key.source)?;
        source_rate::admit(tables, &settings, segment)?;
    }
    let backend = transmit::backend(tables, segment, flow, longest)?;
    established::learn_link(tables, segment, Table::Established, entry, flow)?;
    if segment.opens() && !flow.forwarding.sees_replies() {
        // Nothing will show that the backend agrees. If it doesn't, the connection is as old as it is.
        tables.count_new_flow(flow.service, flow.backend);
        follow_load(tables, flow, FlowState::ESTABLISHED);
        entry.set_state(FlowState::ESTABLISHED, 0);
    }
    entry.touch(tables.now().tick());
    transmit::send(packet, tables, segment, flow, backend, Reason::ToBackend, Edits::NONE)
}

/// Closes a flow whose entries are `entry` and `peer`; `flow` is what the former was before.
#[inline(always)]
fn close<A: Family, T: FamilyTables<A>>(
    tables: &T,
    flow: &Flow<A>,
    entry: Entry<'_, Flow<A>>,
    peer: Option<Entry<'_, Flow<A>>>,
) {
    let ended = flow.finished | finished::BACKEND_RESET;
    follow_load(tables, flow, FlowState::CLOSED);
    entry.set_state(FlowState::CLOSED, ended);
    if let Some(peer) = peer {
        peer.set_state(FlowState::CLOSED, ended);
    }
    entry.touch(tables.now().tick());
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
    is_over: &mut bool,
    reason: Reason,
) -> Result<Verdict, Reason> {
    let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
    segment.admit(packet, &settings)?;
    if !segment.flags.has(TcpFlags::ACK) || segment.flags.has(TcpFlags::RST) {
        // It closes the connection itself, and nobody is there to hear it.
        return Err(Reason::NoBackend);
    }
    if flow.state.is_half_open() {
        take_out(tables, table, &segment.key, flow);
    } else if !flow.is_surely_over() {
        let peer = find_peer(tables, table, &segment.key, flow);
        close(tables, flow, entry, peer);
    }
    *is_over = true;
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
/// where there is nowhere else to go.
#[inline(always)]
fn refused<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<A>,
    (table, entry): (Table, Entry<'_, Flow<A>>),
    is_over: &mut bool,
) -> Result<Verdict, Reason> {
    let Scratch { segment, flow, longest, .. } = scratch;
    let segment = &*segment;
    let peer = find_peer(tables, table, &segment.key, flow).ok_or(Reason::NoFlow)?;
    let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
    segment.admit(packet, &settings)?;
    if !flow.forwarding.hides_client() {
        established::demand_own_station(tables, segment)?;
    }
    let is_half_open = flow.state.is_half_open();
    if !is_half_open {
        // That it is closed may have been a reset of somebody else's; now the backend has said so.
        close(tables, flow, entry, Some(peer));
        *is_over = true;
    }
    choice::note_refusal(tables, flow.backend);
    tables.count_answer(flow.backend, Answer::Refused);
    if withhold(tables, &settings, &segment.key, flow, peer) {
        return Err(Reason::RefusalWithheld);
    }
    transmit::backend(tables, segment, flow, longest)?;
    if is_half_open {
        forget(tables, Table::Embryonic, &segment.key, flow);
    }
    transmit::send(packet, tables, segment, flow, None, Reason::ToClient, Edits::NONE)
}

/// Whether a client isn't to hear that a backend refuses its connection, whose entry in the direction to the client is
/// `flow`, under `key`, since its next SYN goes elsewhere.
#[inline(always)]
pub(super) fn withhold<A: Family, T: FamilyTables<A>>(
    tables: &T,
    settings: &Settings,
    key: &FlowKey<A>,
    flow: &Flow<A>,
    peer: Entry<'_, Flow<A>>,
) -> bool {
    let is_half_open = flow.state.is_half_open();
    let tries = if is_half_open { peer.read().finished } else { 0 };
    let attempt = Attempt::after(tries, flow.backend);
    let request = flow.peer_key(key.protocol);
    let picked = opening::service(tables, &request)
        .and_then(|service| choice::pick(tables, &request, &service, settings, attempt).ok());
    let is_elsewhere = picked.is_some_and(|index| choice::is_elsewhere(tables, index, attempt));
    if !is_elsewhere || tries + 1 >= MOST_TRIES {
        return false;
    }
    if is_half_open {
        nat::give_back(tables, flow, key);
        tables.remove(Table::Embryonic, key);
        follow_load(tables, flow, FlowState::REFUSED);
        peer.set_state(FlowState::REFUSED, tries);
    }
    true
}
