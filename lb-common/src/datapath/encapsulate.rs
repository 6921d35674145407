//! The whole datagram travels to the backend within an outer header.

use super::{Family, FamilyTables, NETWORK_OFFSET, Packet, Reason, hash, parse::Segment};
use crate::{
    abi::{AddressFamily, Backend, Flow, Forwarding, Stations},
    wire::{Ipv4Header, Ipv6Header, NetworkHeader, NetworkU16, Outer, PROTOCOL_UDP, UdpHeader},
};

/// Puts the datagram, with one hop less, into an outer one from us to the backend. Returns how many
/// bytes that puts before it.
#[inline(always)]
pub(super) fn forward<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    segment: &Segment<A>,
    flow: &Flow<A>,
    backend: &Backend,
) -> Result<usize, Reason> {
    let is_gue = flow.forwarding == Forwarding::Gue;
    // An outer IPv4 header has no place for it.
    let number = if is_gue || backend.family == AddressFamily::Ipv6 {
        let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
        hash::flow(&segment.key, settings.hash_seed)
    } else {
        0
    };
    let inner_length = segment.datagram_length as u16;
    let outer = Outer {
        inherited: A::Header::inherited(segment.head),
        payload_length: if is_gue { UdpHeader::LENGTH as u16 + inner_length } else { inner_length },
        protocol: if is_gue { PROTOCOL_UDP } else { A::Header::ENCAPSULATED_PROTOCOL },
        source: &backend.outer_source,
        destination: &backend.address,
        flow: number,
    };

    // Each length is a constant of its own: the verifier wants bounds for what is added.
    let done = match backend.family {
        AddressFamily::Ipv6 if is_gue => {
            wrap::<A, Ipv6Header, P, { Ipv6Header::LENGTH + UdpHeader::LENGTH }>(
                packet, segment, &outer, backend,
            )
        }
        AddressFamily::Ipv6 => {
            wrap::<A, Ipv6Header, P, { Ipv6Header::LENGTH }>(packet, segment, &outer, backend)
        }
        _ if is_gue => {
            wrap::<A, Ipv4Header, P, { Ipv4Header::MINIMUM_LENGTH + UdpHeader::LENGTH }>(
                packet, segment, &outer, backend,
            )
        }
        _ => wrap::<A, Ipv4Header, P, { Ipv4Header::MINIMUM_LENGTH }>(
            packet, segment, &outer, backend,
        ),
    };
    done.ok_or(Reason::NoHeadroom)
}

/// Puts outer headers of `ADDED` bytes before the datagram, which has one hop less then, and returns that number.
#[inline(always)]
fn wrap<A: Family, H: NetworkHeader, P: Packet, const ADDED: usize>(
    packet: &mut P,
    segment: &Segment<A>,
    outer: &Outer<'_>,
    backend: &Backend,
) -> Option<usize> {
    packet.grow::<ADDED>()?;
    if ADDED > H::LENGTH {
        let header = UdpHeader::new(
            NetworkU16::new(source_port(outer.flow)),
            NetworkU16::new(GUE_PORT),
            outer.payload_length,
        );
        packet.write(NETWORK_OFFSET + H::LENGTH, header)?;
    }
    let within = NETWORK_OFFSET + ADDED + A::Header::ROUTE_OFFSET;
    let hops = A::Header::one_hop_fewer(segment.head);
    packet.write_both((NETWORK_OFFSET, H::around(outer)), (within, hops))?;
    packet.write_both((0, backend.next_hop.stations()), (size_of::<Stations>(), H::ETHER_TYPE))?;
    Some(ADDED)
}

/// Assigned by IANA to Generic UDP Encapsulation.
const GUE_PORT: u16 = 6080;

/// A dynamic port (RFC 6335) that is the same for all packets of a flow, so that routers and
/// receive queues spread flows and keep each in order.
#[inline(always)]
const fn source_port(hash: u32) -> u16 {
    (hash >> 16) as u16 | 0xc000
}
