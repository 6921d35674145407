//! First step: from a frame to a TCP segment, or to the reason why it isn't one for us.

use super::{NETWORK_OFFSET, Packet, Reason};
use crate::{
    abi::{FlowKey, Link, Settings},
    wire::{
        Address, EtherType, EthernetHeader, Ipv4Address, Ipv4Header, NetworkHeader, PROTOCOL_TCP,
        TcpFlags, TcpHeader,
    },
};

/// A TCP segment whose headers lie within the frame and agree with each other about lengths.
#[derive(Clone, Copy)]
pub(super) struct Segment<A: Address> {
    /// What identifies its direction of a flow.
    pub(super) key: FlowKey<A>,
    /// The station that sent the frame, and the one that it was sent to.
    pub(super) link: Link,
    /// Control bits.
    pub(super) flags: TcpFlags,
    /// Sequence number.
    pub(super) sequence: u32,
    /// Acknowledgement number.
    pub(super) acknowledgement: u32,
    /// Length of the datagram in bytes.
    pub(super) datagram_length: usize,
    /// Offset of the TCP header in the frame, in bytes.
    pub(super) transport_offset: usize,
    /// The IP header as it came.
    pub(super) network: A::Header,
}

/// Reads the headers.
#[inline(always)]
pub(super) fn segment<P: Packet>(packet: &P) -> Result<Segment<Ipv4Address>, Reason> {
    let ethernet: EthernetHeader = packet.read(0).ok_or(Reason::ShortFrame)?;
    if ethernet.ether_type != EtherType::IPV4 {
        return Err(match ethernet.ether_type {
            EtherType::VLAN | EtherType::SERVICE_VLAN => Reason::VlanTagged,
            _ => Reason::NotIpv4,
        });
    }

    let network: Ipv4Header = packet.read(NETWORK_OFFSET).ok_or(Reason::ShortFrame)?;
    let header_length = network.length().ok_or(Reason::BadIpHeader)?;
    let datagram_length = network.total_length();
    if datagram_length < header_length || NETWORK_OFFSET + datagram_length > packet.length() {
        return Err(Reason::BadIpLength);
    }
    if network.protocol() != PROTOCOL_TCP {
        return Err(Reason::NotTcp);
    }
    if network.is_later_fragment() {
        return Err(Reason::LaterFragment);
    }

    let transport_offset = NETWORK_OFFSET + header_length;
    let segment_length = datagram_length - header_length;
    if segment_length < TcpHeader::MINIMUM_LENGTH {
        return Err(Reason::BadTcpHeader);
    }
    let transport: TcpHeader = packet.read(transport_offset).ok_or(Reason::BadTcpHeader)?;
    if transport.length() < TcpHeader::MINIMUM_LENGTH || transport.length() > segment_length {
        return Err(Reason::BadTcpHeader);
    }

    Ok(Segment {
        key: FlowKey {
            source: network.source(),
            destination: network.destination(),
            source_port: transport.source_port(),
            destination_port: transport.destination_port(),
            protocol: u32::from(PROTOCOL_TCP),
        },
        link: Link {
            interface: packet.ingress(),
            station: ethernet.source,
            own: ethernet.destination,
        },
        flags: transport.flags(),
        sequence: transport.sequence(),
        acknowledgement: transport.acknowledgement(),
        datagram_length,
        transport_offset,
        network,
    })
}

impl<A: Address> Segment<A> {
    /// Whether a segment that is ours by its addresses may be sent on at all.
    #[inline(always)]
    pub(super) fn admit<P: Packet>(&self, packet: &P, settings: &Settings) -> Result<(), Reason> {
        if self.network.is_fragment() {
            return Err(Reason::Fragment);
        }
        if !self.network_checksum_is_right(packet) {
            return Err(Reason::BadIpChecksum);
        }
        if self.network.time_to_live() <= 1 {
            return Err(Reason::TimeToLiveExpired);
        }
        if self.datagram_length > settings.maximum_datagram as usize {
            return Err(Reason::TooBig);
        }
        if self.flags.is_invalid() {
            return Err(Reason::InvalidFlags);
        }
        Ok(())
    }

    /// Checks the IP header's checksum over the header and its options, as a router must (RFC 1812,
    /// section 5.2.2).
    #[inline(always)]
    fn network_checksum_is_right<P: Packet>(&self, packet: &P) -> bool {
        let start = NETWORK_OFFSET + size_of::<A::Header>();
        // Counted apart from the offset: else the verifier goes on with one path for each length.
        let words = (self.transport_offset - start) / 4;
        let mut options = 0;
        for word in 0..MAXIMUM_OPTION_WORDS {
            if word >= words {
                break;
            }
            let Some([first, second]) = packet.read::<[u16; 2]>(start + word * 4) else {
                return false;
            };
            options += u32::from(first) + u32::from(second);
        }
        self.network.checksum_is_right(options)
    }
}

const MAXIMUM_OPTION_WORDS: usize = (Ipv4Header::MAXIMUM_LENGTH - Ipv4Header::MINIMUM_LENGTH) / 4;
