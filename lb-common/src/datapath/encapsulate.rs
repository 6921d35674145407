//! The whole datagram travels to the backend within an outer header.

use super::{NETWORK_OFFSET, Packet, Reason, Tables, hash, parse::Segment};
use crate::{
    abi::{Backend, Flow, Forwarding},
    wire::{
        Address, EtherType, EthernetHeader, Ipv4Address, Ipv4Header, NetworkHeader, NetworkU16,
        OuterIpv4, PROTOCOL_UDP, UdpHeader,
    },
};

/// Bytes that encapsulation adds to a datagram.
#[inline(always)]
pub(super) const fn overhead(forwarding: Forwarding) -> usize {
    match forwarding {
        Forwarding::Ipip => Ipv4Header::MINIMUM_LENGTH,
        Forwarding::Gue => Ipv4Header::MINIMUM_LENGTH + UdpHeader::LENGTH,
        _ => 0,
    }
}

/// Puts the datagram, with one hop less, into an outer one from us to the backend.
#[inline(always)]
pub(super) fn forward<A: Address, P: Packet, T: Tables<A>>(
    packet: &mut P,
    tables: &T,
    segment: &Segment<A>,
    flow: &Flow<A>,
    backend: &Backend,
) -> Result<(), Reason> {
    let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
    let source = tables.nat_source(backend.nat_source).ok_or(Reason::TablesIncomplete)?;
    let is_gue = flow.forwarding == Forwarding::Gue;
    let added = overhead(flow.forwarding);

    // Each length is a constant of its own: the verifier wants bounds for what is added.
    let grown = if is_gue {
        packet.grow::<{ Ipv4Header::MINIMUM_LENGTH + UdpHeader::LENGTH }>()
    } else {
        packet.grow::<{ Ipv4Header::MINIMUM_LENGTH }>()
    };
    grown.ok_or(Reason::NoHeadroom)?;
    let route = segment.network.forwarded(flow.source, flow.destination, flow.network_delta);
    let inner = NETWORK_OFFSET + added;
    packet.write(inner + A::Header::ROUTE_OFFSET, route).ok_or(Reason::NoHeadroom)?;

    let inner_length = segment.datagram_length;
    if is_gue {
        let header = UdpHeader::new(
            NetworkU16::new(source_port(hash::flow(&segment.key, settings.hash_seed))),
            NetworkU16::new(GUE_PORT),
            (UdpHeader::LENGTH + inner_length) as u16,
        );
        let place = NETWORK_OFFSET + Ipv4Header::MINIMUM_LENGTH;
        packet.write(place, header).ok_or(Reason::NoHeadroom)?;
    }
    let outer = Ipv4Header::around(OuterIpv4 {
        inherited: segment.network.inherited(),
        length: (added + inner_length) as u16,
        protocol: if is_gue { PROTOCOL_UDP } else { A::Header::ENCAPSULATED_PROTOCOL },
        source: Ipv4Address::from_words(source),
        destination: Ipv4Address::from_words(backend.address),
    });
    packet.write(NETWORK_OFFSET, outer).ok_or(Reason::NoHeadroom)?;
    let ethernet = EthernetHeader {
        destination: backend.link.station,
        source: backend.link.own,
        ether_type: EtherType::IPV4,
    };
    packet.write(0, ethernet).ok_or(Reason::NoHeadroom)
}

/// Assigned by IANA to Generic UDP Encapsulation.
const GUE_PORT: u16 = 6080;

/// A dynamic port (RFC 6335) that is the same for all packets of a flow, so that routers and
/// receive queues spread flows and keep each in order.
#[inline(always)]
const fn source_port(hash: u32) -> u16 {
    (hash >> 16) as u16 | 0xc000
}
