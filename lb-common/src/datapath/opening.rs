//! A client opens a connection, or goes on with one that isn't known: a backend is picked and the flow is
//! recorded.

use core::hint;

use super::{
    Decision, Edits, Family, FamilyTables, Note, Packet, Reason, Scratch, Stop, Table, Verdict,
    choice::{self, Attempt},
    established, nat, options,
    parse::Segment,
    rewrite, source_rate,
    tables::forget,
    trace_places, transmit,
};
use crate::{
    abi::{
        Access, AccessKey, Backend, Direction, Flow, FlowKey, FlowState, Forwarding, Service,
        ServiceKey, Settings,
    },
    wire::TcpFlags,
};

/// Picks a backend for a segment that belongs to no flow, if it may open one to the service, and writes down in `flow`
/// what is known of that then.
#[inline(always)]
pub(super) fn prepare<A: Family, T: FamilyTables<A>>(
    tables: &T,
    scratch: &mut Scratch<A>,
    attempt: Attempt,
) -> Result<(), Reason> {
    // The verifier forgets what was compared with what: else it would go on with one path for each outcome.
    scratch.memory = [attempt.tries, attempt.avoided];
    let Scratch { segment, flow, service, memory: [tries, avoided], .. } =
        hint::black_box(&mut *scratch);
    let (segment, service) = (&*segment, &*service);
    let attempt = Attempt { tries: *tries, avoided: *avoided };
    let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
    choose(tables, segment, service, &settings, attempt, flow)?;
    source_rate::admit(tables, &settings, segment)?;
    if !flow.forwarding.sees_replies() {
        // What may be left of a flow of the same key.
        trace_places::erase(tables, &segment.key, &settings);
    }
    flow.finished = attempt.tries as u8;
    scratch.memory = [0; 2];
    Ok(())
}

/// Records the flow of a segment that was prepared, and forwards it.
#[inline(always)]
pub(super) fn forward<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<A>,
    mut edits: Edits,
) -> Result<Verdict, Stop> {
    let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
    scratch.segment.admit(packet, &settings)?;
    // The verifier forgets how many options the IP header has: else it would go on with one path for each
    // number of them.
    let Scratch { segment, flow, reply_key, longest, memory, .. } = hint::black_box(scratch);
    let segment = &*segment;
    // The other direction's, where a port was tried in vain.
    flow.direction = Direction::ToBackend as u8;
    let backend = transmit::backend(tables, segment, flow, longest)?;
    let backend = backend.ok_or(Reason::TablesIncomplete)?;
    flow.number = 0;
    if segment.flags.has(TcpFlags::SYN) {
        edits.maximum_segment = backend.maximum_segment;
    }
    if edits.looked != 0 && flow.forwarding.hides_client() {
        flow.number = options::begin(packet, &edits, tables.now());
        edits.shift = flow.number;
    }
    let reason = record(tables, &settings, segment, backend, flow, (reply_key, memory))?;
    Ok(transmit::send(packet, tables, segment, flow, Some(backend), reason, edits)?)
}

/// Leaves a segment of no established flow to the part for those, a SYN after a look at its options. Of one that is new,
/// there is no handshake either, and its service is known.
#[inline(always)]
pub(super) fn leave<A: Family, P: Packet>(
    packet: &mut P,
    segment: &Segment<A>,
    is_new: bool,
) -> Decision {
    let [_, _, _, open, ..] = A::STAGES;
    let note = Note::of_segment(packet.tags(), is_new);
    if segment.flags.opens() && segment.options_length > 0 {
        Decision::surveying(packet, open, note, segment.transport_offset())
    } else {
        packet.leave(note);
        Decision::Left(open)
    }
}

/// Demands that a segment may open a connection to the service, picks a backend, and writes down the
/// flow's direction to it.
#[inline(always)]
fn choose<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    service: &Service,
    settings: &Settings,
    attempt: Attempt,
    flow: &mut Flow<A>,
) -> Result<(), Reason> {
    flow.maximum_datagram = established::demand_own_station(tables, segment)?;
    let key = &segment.key;
    if !segment.opens() && !service.is_hashed() {
        // Nobody knows where the connection goes that it may belong to.
        return Err(if segment.flags.is_invalid() { Reason::InvalidFlags } else { Reason::NoFlow });
    }
    let chosen = choice::choose(tables, key, service, settings, attempt);
    if !segment.opens() && !segment.flags.is_invalid() {
        let backend = chosen.ok().and_then(|index| tables.backend(index));
        let forwarding = backend.map(|backend| backend.forwarding).ok_or(Reason::NoFlow)?;
        if !may_adopt(segment, forwarding) {
            return Err(Reason::NoFlow);
        }
    }
    if key.source.is_invalid_source()
        || key.source == key.destination
        || segment.link.station.is_group()
    {
        return Err(Reason::InvalidSource);
    }
    demand_access(tables, service, key.source)?;
    let index = chosen?;
    let backend = tables.backend(index).ok_or(Reason::TablesIncomplete)?;
    flow.backend = index;
    flow.service = service.index;
    flow.forwarding = backend.forwarding;
    flow.direction = Direction::ToBackend as u8;
    flow.state = FlowState::SYN;
    Ok(())
}

/// Demands that a client may connect.
#[inline(always)]
pub(super) fn demand_access<A: Family, T: FamilyTables<A>>(
    tables: &T,
    service: &Service,
    address: A,
) -> Result<(), Reason> {
    if service.access == 0 {
        return Ok(());
    }
    let access = tables.access(&AccessKey { list: service.access, address });
    if access == Some(Access::Allowed) { Ok(()) } else { Err(Reason::AccessDenied) }
}

/// Writes down the direction to the backend of a connection that isn't known, for an ICMP error about it:
/// see [`may_adopt`].
#[inline(always)]
pub(super) fn guess<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    flow: &mut Flow<A>,
) -> Option<()> {
    let key = &segment.key;
    let service = service(tables, key)?;
    let settings = tables.settings()?;
    if !service.is_hashed() {
        return None;
    }
    let index = choice::pick(tables, key, &service, &settings, Attempt::FIRST).ok()?;
    let forwarding = tables.backend(index)?.forwarding;
    if !may_adopt(segment, forwarding) {
        return None;
    }
    flow.source = key.source;
    flow.destination = key.destination;
    flow.backend = index;
    flow.forwarding = forwarding;
    flow.direction = Direction::ToBackend as u8;
    Some(())
}

/// Whether a connection may be gone on with that isn't known: another balancer may have opened it, whose
/// addresses moved here. Where nothing is translated, what the ring leads to is the same there and
/// here.
#[inline(always)]
fn may_adopt<A: Family>(segment: &Segment<A>, forwarding: Forwarding) -> bool {
    !forwarding.sees_replies() && !segment.flags.has(TcpFlags::SYN)
}

/// Records the flow that a segment opens, as a half-open handshake, and completes `flow`. What
/// `reply_key` holds before and afterwards is of no interest; `memory` is [`nat::reserve`]'s.
#[inline(always)]
fn record<A: Family, T: FamilyTables<A>>(
    tables: &T,
    settings: &Settings,
    segment: &Segment<A>,
    backend: &Backend,
    flow: &mut Flow<A>,
    (reply_key, memory): (&mut FlowKey<A>, &mut [u32; 2]),
) -> Result<Reason, Stop> {
    let key = &segment.key;
    let now = tables.now();
    let shift = flow.number;
    flow.source = key.destination;
    flow.destination = key.source;
    flow.source_port = key.destination_port;
    flow.destination_port = key.source_port;
    flow.opened = now.tick();
    flow.last_seen = now.tick();
    flow.link = segment.link;
    flow.state = FlowState::SYN;
    flow.nat_source = 0;
    if flow.forwarding.sees_replies() {
        flow.direction = Direction::ToClient as u8;
        *reply_key = FlowKey {
            source: A::from_words(backend.address),
            destination: key.source,
            source_port: backend.port,
            destination_port: key.source_port,
            protocol: key.protocol,
        };
        nat::reserve(tables, settings, backend, reply_key, flow, memory)?;
        flow.source = reply_key.destination;
        flow.destination = reply_key.source;
        flow.source_port = reply_key.destination_port;
        flow.destination_port = reply_key.source_port;
        flow.number = now.stamp().number();
    } else {
        flow.source = key.source;
        flow.destination = key.destination;
        flow.source_port = key.source_port;
        flow.destination_port = key.destination_port;
        // A SYN counts as one byte.
        flow.number = segment.sequence.wrapping_add(u32::from(segment.opens()));
    }
    flow.direction = Direction::ToBackend as u8;
    rewrite::prepare(flow, key);
    tables.add_load(flow.service, flow.backend, 1);
    if tables.insert(Table::Embryonic, key, flow).is_err() {
        forget(tables, Table::Embryonic, key, flow);
        return Err(Reason::EmbryonicTableFull.into());
    }
    flow.number = shift;
    if segment.is_udp() {
        // Without a handshake, nothing else tells a flow's beginning.
        tables.count_new_flow(flow.service, flow.backend);
    }
    Ok(if segment.opens() { Reason::Opened } else { Reason::Adopted })
}

/// The service that packets of a key are for.
#[inline(always)]
pub(super) fn service<A: Family, T: FamilyTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
) -> Option<Service> {
    tables.service(&ServiceKey {
        address: key.destination,
        port: key.destination_port,
        protocol: key.protocol as u16,
    })
}
