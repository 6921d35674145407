//! The headers of a segment are changed as its flow says.

use super::{Family, NETWORK_OFFSET, Packet, parse::Segment};
use crate::{
    abi::{Flow, FlowKey, Hop},
    wire::{Checksum, ChecksumDelta, Ipv4Header, NetworkHeader, TcpHeader, UdpHeader},
};

/// Precomputes what rewriting packets that arrive under `key` does to their checksums.
#[inline(always)]
pub(super) fn prepare<A: Family>(flow: &mut Flow<A>, key: &FlowKey<A>) {
    let addresses = A::checksum_delta(key.source, flow.source)
        .and(A::checksum_delta(key.destination, flow.destination));
    let ports = ChecksumDelta::of_u16(key.source_port.raw(), flow.source_port.raw())
        .and(ChecksumDelta::of_u16(key.destination_port.raw(), flow.destination_port.raw()));
    flow.network_delta = addresses.and(Ipv4Header::TIME_TO_LIVE_DELTA);
    flow.transport_delta = addresses.and(ports);
}

/// Changes the segment's ports as its flow says, and its checksum by `delta`.
#[inline(always)]
pub(super) fn transport<A: Family, P: Packet>(
    packet: &mut P,
    segment: &Segment<A>,
    flow: &Flow<A>,
    delta: ChecksumDelta,
) -> Option<()> {
    let transport = segment.transport_offset();
    if segment.is_udp() {
        let place = transport + UdpHeader::CHECKSUM_OFFSET;
        let checksum: Checksum = packet.read(place)?;
        packet.write(place, checksum.updated_udp(delta))?;
    } else {
        let place = transport + TcpHeader::CHECKSUM_OFFSET;
        let checksum: Checksum = packet.read(place)?;
        packet.write(place, checksum.updated(delta))?;
    }
    packet.write(transport, [flow.source_port, flow.destination_port])
}

/// Changes the network header as the flow says, with one hop less, and sends the frame on.
#[inline(always)]
pub(super) fn network<A: Family, P: Packet>(
    packet: &mut P,
    segment: &Segment<A>,
    flow: &Flow<A>,
    hop: &Hop,
) -> Option<()> {
    let (source, destination) = (flow.source, flow.destination);
    let route = A::Header::changed(segment.head, source, destination, 1, flow.network_delta);
    packet.write_both((0, hop.stations()), (NETWORK_OFFSET + A::Header::ROUTE_OFFSET, route))
}

/// Sends the frame on, with one hop less in the network header.
#[inline(always)]
pub(super) fn one_hop<A: Family, P: Packet>(
    packet: &mut P,
    segment: &Segment<A>,
    hop: &Hop,
) -> Option<()> {
    let hops = A::Header::one_hop_fewer(segment.head);
    packet.write_both((0, hop.stations()), (NETWORK_OFFSET + A::Header::ROUTE_OFFSET, hops))
}
