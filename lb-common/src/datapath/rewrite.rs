//! Last step: the headers of a segment are changed as its flow says.

use super::{NETWORK_OFFSET, Packet, Reason, Tables, Verdict, parse::Segment};
use crate::{
    abi::{Direction, Flow, FlowKey, Link},
    wire::{Address, Checksum, ChecksumDelta, Ipv4Header, NetworkHeader, TcpHeader},
};

/// Precomputes what rewriting packets that arrive under `key` does to their checksums.
#[inline(always)]
pub(super) fn prepare<A: Address>(flow: &mut Flow<A>, key: &FlowKey<A>) {
    let addresses = A::checksum_delta(key.source, flow.source)
        .and(A::checksum_delta(key.destination, flow.destination));
    let ports = ChecksumDelta::of_u16(key.source_port.raw(), flow.source_port.raw())
        .and(ChecksumDelta::of_u16(key.destination_port.raw(), flow.destination_port.raw()));
    flow.network_delta = addresses.and(Ipv4Header::TIME_TO_LIVE_DELTA);
    flow.transport_delta = addresses.and(ports);
}

/// Rewrites the segment for the way that `link` says, and counts it.
#[inline(always)]
pub(super) fn forward<A: Address, P: Packet, T: Tables<A>>(
    packet: &mut P,
    tables: &T,
    segment: &Segment<A>,
    flow: &Flow<A>,
    link: Link,
    reason: Reason,
) -> Result<Verdict, Reason> {
    write_headers(packet, segment, flow, link).ok_or(Reason::ShortFrame)?;
    tables.count_packet(
        flow.service,
        flow.backend,
        Direction::from_u8(flow.direction),
        segment.datagram_length as u64,
    );
    Ok(Verdict { reason, egress: link.interface })
}

#[inline(always)]
fn write_headers<A: Address, P: Packet>(
    packet: &mut P,
    segment: &Segment<A>,
    flow: &Flow<A>,
    link: Link,
) -> Option<()> {
    let transport = segment.transport_offset;
    let checksum: Checksum = packet.read(transport + TcpHeader::CHECKSUM_OFFSET)?;
    packet.write(transport + TcpHeader::CHECKSUM_OFFSET, checksum.updated(flow.transport_delta))?;
    packet.write(transport, [flow.source_port, flow.destination_port])?;
    let route = segment.network.forwarded(flow.source, flow.destination, flow.network_delta);
    packet.write(NETWORK_OFFSET + A::Header::ROUTE_OFFSET, route)?;
    packet.write(0, [link.station, link.own])
}
