//! The headers of a segment are changed as its flow says.

use super::{Family, NETWORK_OFFSET, Packet, parse::Segment};
use crate::{
    abi::{Flow, FlowKey, Link},
    wire::{Address, Checksum, ChecksumDelta, Ipv4Header, NetworkHeader, TcpHeader, UdpHeader},
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

/// What a segment's network header becomes as the flow says, with one hop less.
#[inline(always)]
pub(super) fn route<A: Family>(segment: &Segment<A>, flow: &Flow<A>) -> Route<A> {
    A::Header::changed(segment.head, flow.source, flow.destination, 1, flow.network_delta)
}

/// The part of the family's header that forwarding changes.
pub(super) type Route<A> = <<A as Address>::Header as NetworkHeader>::Route;

/// Changes the network header as the flow says, and sends the frame on by `link`.
#[inline(always)]
pub(super) fn network<A: Family, P: Packet>(
    packet: &mut P,
    segment: &Segment<A>,
    flow: &Flow<A>,
    link: &Link,
) -> Option<()> {
    packet.write(NETWORK_OFFSET + A::Header::ROUTE_OFFSET, route(segment, flow))?;
    packet.write(0, link.stations())
}
