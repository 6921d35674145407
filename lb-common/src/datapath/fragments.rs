//! Fragments behind the first follow it: only that names ports, which it leaves in a table.

use super::{
    Family, FamilyTables, NETWORK_OFFSET, Packet, Reason, Scratch, Verdict, established, parse,
    parse::Segment, tables::find_anywhere, transmit,
};
use crate::{
    abi::{Direction, FlowKey, Fragment, FragmentKey, Tick},
    wire::NetworkHeader,
};

/// For how long the first fragment is followed, in ticks: about as long as hosts wait for the last one
/// (RFC 8200, section 4.5).
const LIFE: u32 = (60_000_000_000 / Tick::NANOSECONDS) as u32;

/// Remembers what a first fragment says, so that later ones can follow it.
#[inline(always)]
pub(super) fn remember<A: Family, T: FamilyTables<A>>(tables: &T, segment: &Segment<A>) {
    let FlowKey { source, destination, source_port, destination_port, protocol } = segment.key;
    let seen = tables.now().tick();
    let said = Fragment { source_port, destination_port, protocol, seen };
    let key = key(source, destination, segment.part.identification, protocol);
    tables.remember_fragment(&key, &said);
}

#[inline(always)]
fn key<A: Family>(source: A, destination: A, identification: u32, protocol: u32) -> FragmentKey<A> {
    let protocol = if A::IDENTIFIES_BY_PROTOCOL { protocol } else { 0 };
    FragmentKey { source, destination, identification, protocol }
}

/// Sends a later fragment where the first one went.
#[inline(always)]
pub(super) fn forward<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<A>,
) -> Result<Verdict, Reason> {
    let Scratch { segment, flow, reply_key: flow_key, longest, .. } = scratch;
    let datagram = A::datagram(packet, NETWORK_OFFSET)?;
    let (source, destination) = (datagram.header.source(), datagram.header.destination());
    let identification = datagram.part.identification;
    let key = key(source, destination, identification, u32::from(datagram.protocol));
    let first = tables.fragment(&key).ok_or(Reason::LaterFragment)?;
    if tables.now().tick().since(first.seen) > LIFE {
        return Err(Reason::LaterFragment);
    }
    let Fragment { source_port, destination_port, protocol, .. } = first;
    *flow_key = FlowKey { source, destination, source_port, destination_port, protocol };
    parse::headless(packet, &datagram, *flow_key, segment)?;
    let segment = &*segment;
    *flow = find_anywhere(tables, flow_key).ok_or(Reason::LaterFragment)?;

    established::demand_own_station(tables, segment)?;
    let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
    segment.admit_datagram(packet, &settings)?;
    let backend = transmit::backend(tables, segment, flow, longest)?;
    let verdict =
        transmit::send_headless(packet, tables, segment, flow, backend, Reason::Fragment)?;
    let direction = Direction::from_u8(flow.direction);
    tables.count_packet(flow.service, flow.backend, direction, segment.datagram_length as u64);
    Ok(verdict)
}
