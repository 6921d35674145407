//! First step: from a frame to a TCP segment or a UDP datagram, or to the reason why it isn't one for
//! us.

use bytemuck::Zeroable;

use super::{Datagram, Family, NETWORK_OFFSET, Packet, Reason, network::Part};
use crate::{
    abi::{FlowKey, Link, LocalMac, Settings, Stations},
    wire::{NetworkHeader, PROTOCOL_TCP, PROTOCOL_UDP, TcpFlags, TcpHeader, UdpHeader},
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
    pub(super) head: <A::Header as NetworkHeader>::Head,
}

// SAFETY: addresses, numbers and booleans, all of which may be zeros.
unsafe impl<A: Family> Zeroable for Segment<A> {}

/// Reads the headers of a frame that carries a datagram of the family. What is read is put in its place at once: there are
/// few registers.
#[inline(always)]
pub(super) fn segment<A: Family, P: Packet>(
    packet: &P,
    segment: &mut Segment<A>,
) -> Result<(), Reason> {
    let datagram = A::datagram(packet, NETWORK_OFFSET)?;
    if datagram.part.is_later {
        return Err(Reason::LaterFragment);
    }
    read(packet, &datagram, segment)
}

/// The same of a frame whose network header is nothing but itself, and whose datagram is whole. `None`: it isn't one, or there is
/// something wrong with it.
#[inline(always)]
pub(super) fn plain<A: Family, P: Packet>(packet: &P, segment: &mut Segment<A>) -> Option<()> {
    let datagram = A::plain_datagram(packet, NETWORK_OFFSET)?;
    read(packet, &datagram, segment).ok()
}

/// Reads what follows a datagram's network headers.
#[inline(always)]
fn read<A: Family, P: Packet>(
    packet: &P,
    datagram: &Datagram<A>,
    segment: &mut Segment<A>,
) -> Result<(), Reason> {
    segment.key.source = datagram.header.source();
    segment.key.destination = datagram.header.destination();
    segment.key.protocol = u32::from(datagram.protocol);
    match datagram.protocol {
        PROTOCOL_TCP => tcp(packet, datagram, segment)?,
        PROTOCOL_UDP => udp(packet, datagram, segment)?,
        _ => return Err(Reason::OtherProtocol),
    }
    surround(packet, datagram, segment)
}

/// What there is of a datagram of a flow whose key is `key`, but that has no transport header of it, in
/// the form of a segment: an ICMP message, or a later fragment.
#[inline(always)]
pub(super) fn headless<A: Family, P: Packet>(
    packet: &P,
    datagram: &Datagram<A>,
    key: FlowKey<A>,
    segment: &mut Segment<A>,
) -> Result<(), Reason> {
    segment.key = key;
    segment.flags = TcpFlags::NONE;
    (segment.sequence, segment.acknowledgement) = (0, 0);
    segment.lacks_checksum = false;
    segment.options_length = 0;
    surround(packet, datagram, segment)
}

/// What is around the transport header.
#[inline(always)]
fn surround<A: Family, P: Packet>(
    packet: &P,
    datagram: &Datagram<A>,
    segment: &mut Segment<A>,
) -> Result<(), Reason> {
    segment.datagram_length = datagram.length;
    segment.transport_offset = datagram.transport_offset as u16;
    segment.part = datagram.part;
    segment.head = datagram.header.head();
    let stations: Stations = packet.read(0).ok_or(Reason::ShortFrame)?;
    segment.link = Link::of_frame(packet.ingress(), stations, packet.tags().vlans());
    Ok(())
}

/// A header's offset in a frame that was read from memory. The verifier loses sight of it there, and has
/// to be told that it is even and not too large; no headers reach beyond.
#[inline(always)]
pub(super) const fn bounded(offset: u16) -> usize {
    (offset & 0x3ffe) as usize
}

/// How many bytes of a datagram follow its network headers.
#[inline(always)]
const fn transport_length<A: Family>(datagram: &Datagram<A>) -> usize {
    NETWORK_OFFSET + datagram.length - datagram.transport_offset
}

/// Reads a TCP header.
#[inline(always)]
fn tcp<A: Family, P: Packet>(
    packet: &P,
    datagram: &Datagram<A>,
    segment: &mut Segment<A>,
) -> Result<(), Reason> {
    let length = transport_length(datagram);
    if length < TcpHeader::MINIMUM_LENGTH {
        return Err(Reason::BadTcpHeader);
    }
    let header: TcpHeader = packet.read(datagram.transport_offset).ok_or(Reason::BadTcpHeader)?;
    if header.length() < TcpHeader::MINIMUM_LENGTH || header.length() > length {
        return Err(Reason::BadTcpHeader);
    }
    segment.key.source_port = header.source_port();
    segment.key.destination_port = header.destination_port();
    segment.flags = header.flags();
    segment.sequence = header.sequence();
    segment.acknowledgement = header.acknowledgement();
    segment.lacks_checksum = false;
    segment.options_length = (header.length() - TcpHeader::MINIMUM_LENGTH) as u8;
    Ok(())
}

/// Reads a UDP header. It may say that the datagram is shorter: what follows are options (RFC 9868). Of a fragmented one, it
/// says how long the whole is.
#[inline(always)]
fn udp<A: Family, P: Packet>(
    packet: &P,
    datagram: &Datagram<A>,
    segment: &mut Segment<A>,
) -> Result<(), Reason> {
    let length = transport_length(datagram);
    if length < UdpHeader::LENGTH {
        return Err(Reason::BadUdpHeader);
    }
    let header: UdpHeader = packet.read(datagram.transport_offset).ok_or(Reason::BadUdpHeader)?;
    let is_whole = !datagram.part.is_fragment;
    if header.length() < UdpHeader::LENGTH || (header.length() > length && is_whole) {
        return Err(Reason::BadUdpHeader);
    }
    segment.key.source_port = header.source_port();
    segment.key.destination_port = header.destination_port();
    segment.flags = TcpFlags::NONE;
    (segment.sequence, segment.acknowledgement) = (0, 0);
    segment.lacks_checksum = header.checksum().is_none();
    segment.options_length = 0;
    Ok(())
}

impl<A: Family> Segment<A> {
    /// Whether it is one of many: none that a flow begins or ends with.
    #[inline(always)]
    pub(super) const fn is_usual(&self) -> bool {
        let others = TcpFlags::SYN.union(TcpFlags::FIN).union(TcpFlags::RST);
        self.is_udp() || (self.flags.has(TcpFlags::ACK) && !self.flags.has(others))
    }

    /// Whether it is, and whole: what may go past the table of flows.
    #[inline(always)]
    pub(super) const fn is_one_of_many(&self) -> bool {
        self.is_usual() && !self.part.is_fragment
    }

    /// The hardware address that its frame was sent to.
    #[inline(always)]
    pub(super) const fn station(&self) -> LocalMac {
        self.link.local_mac()
    }

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
        self.admit_usual(packet, settings)?;
        if !self.is_udp() && self.flags.is_invalid() {
            return Err(Reason::InvalidFlags);
        }
        Ok(())
    }

    /// The same of one that [`Self::is_usual`].
    #[inline(always)]
    pub(super) fn admit_usual<P: Packet>(
        &self,
        packet: &P,
        settings: &Settings,
    ) -> Result<(), Reason> {
        // What the key says are the datagram's own addresses.
        let header = A::Header::whole(self.head, self.key.source, self.key.destination);
        self.admit_header(packet, &header, settings)?;
        if self.lacks_checksum && !A::UDP_CHECKSUM_IS_OPTIONAL {
            return Err(Reason::NoChecksum);
        }
        Ok(())
    }

    /// The same of what isn't a segment of the flow whose key it has.
    #[inline(always)]
    pub(super) fn admit_datagram<P: Packet>(
        &self,
        packet: &P,
        settings: &Settings,
    ) -> Result<(), Reason> {
        let header: A::Header = packet.read(NETWORK_OFFSET).ok_or(Reason::ShortFrame)?;
        self.admit_header(packet, &header, settings)
    }

    /// What holds for every datagram, whose header is `header`.
    #[inline(always)]
    fn admit_header<P: Packet>(
        &self,
        packet: &P,
        header: &A::Header,
        settings: &Settings,
    ) -> Result<(), Reason> {
        if !A::is_intact(packet, header, NETWORK_OFFSET, self.transport_offset()) {
            return Err(Reason::BadIpChecksum);
        }
        if A::Header::time_to_live(self.head) <= 1 {
            return Err(Reason::TimeToLiveExpired);
        }
        if self.datagram_length > settings.maximum_datagram as usize {
            return Err(Reason::TooBig);
        }
        Ok(())
    }
}
