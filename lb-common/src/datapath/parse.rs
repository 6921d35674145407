//! First step: from a frame to a TCP segment or a UDP datagram, or to the reason why it isn't one for
//! us.

use bytemuck::Zeroable;

use super::{Datagram, Family, NETWORK_OFFSET, Packet, Reason, network::Part};
use crate::{
    abi::{FlowKey, Link, Settings},
    wire::{
        Digest, EthernetHeader, NetworkHeader, NetworkU16, PROTOCOL_TCP, PROTOCOL_UDP, TcpFlags,
        TcpHeader, UdpHeader,
    },
};

/// A TCP segment or a UDP datagram whose headers lie within the frame and agree with each other about
/// lengths.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Segment<A: Family> {
    /// What identifies its direction of a flow.
    pub(super) key: FlowKey<A>,
    /// The station that sent the frame, and the one that it was sent to.
    pub(super) link: Link,
    /// TCP's control bits; none for UDP.
    pub(super) flags: TcpFlags,
    /// TCP's sequence number.
    pub(super) sequence: u32,
    /// TCP's acknowledgement number.
    pub(super) acknowledgement: u32,
    /// Length of the datagram in bytes.
    pub(super) datagram_length: usize,
    /// See [`Self::transport_offset`].
    transport_offset: u16,
    /// Which part of a fragmented datagram it is.
    pub(super) part: Part,
    /// Whether it is UDP without a checksum.
    lacks_checksum: bool,
    /// Bytes of TCP options.
    pub(super) options_length: u8,
    /// The rest of the IP header.
    pub(super) network: Digest,
}

// SAFETY: addresses, numbers and booleans, all of which may be zeros.
unsafe impl<A: Family> Zeroable for Segment<A> {}

/// Reads the headers of a frame that carries a datagram of the family.
#[inline(always)]
pub(super) fn segment<A: Family, P: Packet>(packet: &P) -> Result<Segment<A>, Reason> {
    let ethernet: EthernetHeader = packet.read(0).ok_or(Reason::ShortFrame)?;
    let datagram = A::datagram(packet, NETWORK_OFFSET)?;
    if datagram.part.is_later {
        return Err(Reason::LaterFragment);
    }
    let protocol = datagram.protocol;
    let transport_offset = datagram.transport_offset;
    let length = NETWORK_OFFSET + datagram.length - transport_offset;
    let transport = match protocol {
        PROTOCOL_TCP => tcp(packet, transport_offset, length)?,
        PROTOCOL_UDP => udp(packet, transport_offset, length, datagram.part)?,
        _ => return Err(Reason::OtherProtocol),
    };
    let network = datagram.header;
    Ok(Segment {
        key: FlowKey {
            source: network.source(),
            destination: network.destination(),
            source_port: transport.source_port,
            destination_port: transport.destination_port,
            protocol: u32::from(protocol),
        },
        link: link(packet, &ethernet),
        flags: transport.flags,
        sequence: transport.sequence,
        acknowledgement: transport.acknowledgement,
        datagram_length: datagram.length,
        transport_offset: transport_offset as u16,
        part: datagram.part,
        lacks_checksum: transport.lacks_checksum,
        options_length: transport.options_length,
        network: network.digest(),
    })
}

/// What there is of a datagram of a flow whose key is `key`, but that has no transport header of it, in
/// the form of a segment: an ICMP message, or a later fragment.
#[inline(always)]
pub(super) fn headless<A: Family, P: Packet>(
    packet: &P,
    datagram: &Datagram<A>,
    key: FlowKey<A>,
) -> Result<Segment<A>, Reason> {
    let ethernet: EthernetHeader = packet.read(0).ok_or(Reason::ShortFrame)?;
    Ok(Segment {
        key,
        link: link(packet, &ethernet),
        flags: TcpFlags::NONE,
        sequence: 0,
        acknowledgement: 0,
        datagram_length: datagram.length,
        transport_offset: datagram.transport_offset as u16,
        part: datagram.part,
        lacks_checksum: false,
        options_length: 0,
        network: datagram.header.digest(),
    })
}

/// A header's offset in a frame that was read from memory. The verifier loses sight of it there, and has
/// to be told that it is even and not too large; no headers reach beyond.
#[inline(always)]
pub(super) const fn bounded(offset: u16) -> usize {
    (offset & 0x3ffe) as usize
}

/// Where a frame came from.
#[inline(always)]
fn link<P: Packet>(packet: &P, ethernet: &EthernetHeader) -> Link {
    Link {
        interface: packet.ingress(),
        station: ethernet.source,
        own: ethernet.destination,
        vlans: packet.tags().vlans(),
    }
}

/// What is read from a transport header.
struct Transport {
    source_port: NetworkU16,
    destination_port: NetworkU16,
    flags: TcpFlags,
    sequence: u32,
    acknowledgement: u32,
    lacks_checksum: bool,
    options_length: u8,
}

/// Reads the TCP header of a segment of `length` bytes.
#[inline(always)]
fn tcp<P: Packet>(packet: &P, offset: usize, length: usize) -> Result<Transport, Reason> {
    if length < TcpHeader::MINIMUM_LENGTH {
        return Err(Reason::BadTcpHeader);
    }
    let header: TcpHeader = packet.read(offset).ok_or(Reason::BadTcpHeader)?;
    if header.length() < TcpHeader::MINIMUM_LENGTH || header.length() > length {
        return Err(Reason::BadTcpHeader);
    }
    Ok(Transport {
        source_port: header.source_port(),
        destination_port: header.destination_port(),
        flags: header.flags(),
        sequence: header.sequence(),
        acknowledgement: header.acknowledgement(),
        lacks_checksum: false,
        options_length: (header.length() - TcpHeader::MINIMUM_LENGTH) as u8,
    })
}

/// Reads the UDP header of a datagram of which `length` bytes are here. It may say less: what follows are
/// options (RFC 9868). Of a fragmented one, it says how long the whole is.
#[inline(always)]
fn udp<P: Packet>(
    packet: &P,
    offset: usize,
    length: usize,
    part: Part,
) -> Result<Transport, Reason> {
    if length < UdpHeader::LENGTH {
        return Err(Reason::BadUdpHeader);
    }
    let header: UdpHeader = packet.read(offset).ok_or(Reason::BadUdpHeader)?;
    if header.length() < UdpHeader::LENGTH || (header.length() > length && !part.is_fragment) {
        return Err(Reason::BadUdpHeader);
    }
    Ok(Transport {
        source_port: header.source_port(),
        destination_port: header.destination_port(),
        flags: TcpFlags::NONE,
        sequence: 0,
        acknowledgement: 0,
        lacks_checksum: header.checksum().is_none(),
        options_length: 0,
    })
}

impl<A: Family> Segment<A> {
    /// Offset of the transport header in the frame, in bytes.
    #[inline(always)]
    pub(super) const fn transport_offset(&self) -> usize {
        bounded(self.transport_offset)
    }

    /// Whether it is UDP.
    #[inline(always)]
    pub(super) const fn is_udp(&self) -> bool {
        self.key.protocol == PROTOCOL_UDP as u32
    }

    /// The number that acknowledges all of it (RFC 9293, section 3.4), of a TCP segment in one piece.
    #[inline(always)]
    pub(super) const fn following(&self) -> u32 {
        let headers = self.transport_offset as u32 - NETWORK_OFFSET as u32
            + TcpHeader::MINIMUM_LENGTH as u32
            + self.options_length as u32;
        let counted = self.flags.has(TcpFlags::SYN) as u32 + self.flags.has(TcpFlags::FIN) as u32;
        let payload = (self.datagram_length as u32).wrapping_sub(headers);
        self.sequence.wrapping_add(payload).wrapping_add(counted)
    }

    /// Whether it may be a flow's first.
    #[inline(always)]
    pub(super) const fn opens(&self) -> bool {
        self.is_udp() || self.flags.opens()
    }

    /// Whether it shows, coming from a backend, that the backend takes the flow.
    #[inline(always)]
    pub(super) const fn answers(&self) -> bool {
        self.is_udp() || self.flags.answers()
    }

    /// Whether it is what a TCP answers to a SYN that it has no use for (RFC 9293, section 3.10.7.1).
    #[inline(always)]
    pub(super) const fn refuses(&self) -> bool {
        self.flags.has(TcpFlags::RST) && self.flags.has(TcpFlags::ACK) && self.sequence == 0
    }

    /// Whether a segment that is ours by its addresses may be sent on at all.
    #[inline(always)]
    pub(super) fn admit<P: Packet>(&self, packet: &P, settings: &Settings) -> Result<(), Reason> {
        self.admit_datagram(packet, settings)?;
        if !self.is_udp() && self.flags.is_invalid() {
            return Err(Reason::InvalidFlags);
        }
        if self.lacks_checksum && !A::UDP_CHECKSUM_IS_OPTIONAL {
            return Err(Reason::NoChecksum);
        }
        Ok(())
    }

    /// The part of [`Self::admit`] that holds for every datagram.
    #[inline(always)]
    pub(super) fn admit_datagram<P: Packet>(
        &self,
        packet: &P,
        settings: &Settings,
    ) -> Result<(), Reason> {
        if !A::is_intact(packet, NETWORK_OFFSET, self.transport_offset()) {
            return Err(Reason::BadIpChecksum);
        }
        if self.network.time_to_live <= 1 {
            return Err(Reason::TimeToLiveExpired);
        }
        if self.datagram_length > settings.maximum_datagram as usize {
            return Err(Reason::TooBig);
        }
        Ok(())
    }
}
