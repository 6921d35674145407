//! The network layer: from its header to the transport header, by address family.

use bytemuck::Zeroable;

use super::{Packet, Reason, Stage};
use crate::wire::{
    Address, IcmpHeader, Ipv4Address, Ipv4Header, Ipv6Address, Ipv6Extension, Ipv6Fragment,
    Ipv6Header,
};

/// A datagram whose network headers lie within the frame and agree with it about lengths.
pub struct Datagram<A: Address> {
    /// The IP header as it came.
    pub(super) header: A::Header,
    /// Protocol of what follows the network headers.
    pub(super) protocol: u8,
    /// Offset of what follows them in the frame, in bytes.
    pub(super) transport_offset: usize,
    /// Length in bytes, network headers included.
    pub(super) length: usize,
    /// Which part of a fragmented one it is.
    pub(super) part: Part,
}

/// Which part of a fragmented datagram it is. No option: the compiler would read it while it has no
/// value, which the verifier doesn't like.
#[derive(Clone, Copy, Default, Zeroable)]
#[repr(C)]
pub(super) struct Part {
    /// What all parts of the datagram have in common, as it stands in the header.
    pub(super) identification: u32,
    /// Whether it is no more than a part, the first or a later one.
    pub(super) is_fragment: bool,
    /// Whether it is a later one, without a transport header.
    pub(super) is_later: bool,
}

/// An address family, with what its headers need of the packet logic.
pub trait Family: Address {
    /// Protocol number of the family's ICMP.
    const ICMP: u8;
    /// Whether its checksum covers the addresses of the datagram that it is in.
    const ICMP_COVERS_ADDRESSES: bool;
    /// Whether the network header has a checksum.
    const HEADER_HAS_CHECKSUM: bool;
    /// Whether datagrams of different protocols may have the same identification at once.
    const IDENTIFIES_BY_PROTOCOL: bool;
    /// The stages that handle ICMP and later fragments, the one that answers what is too long, the one
    /// that opens connections, the one for flows in trouble, the one that records a new flow, and the one that looks flows up.
    const STAGES: [Stage; 7];
    /// Whether UDP may go without a checksum.
    const UDP_CHECKSUM_IS_OPTIONAL: bool;

    /// Most bytes of a datagram that an error about it quotes: the whole message isn't longer than what
    /// every host takes, 576 bytes (RFC 1812, section 4.3.2.3) or 1280 (RFC 4443, section 2.4).
    const LONGEST_QUOTE: usize;

    /// The header of a message that a datagram may be `longest` bytes long, without its checksum.
    fn too_big_message(longest: u16) -> IcmpHeader;

    /// Makes room before the frame for the headers of a message about it.
    fn grow_for_message<P: Packet>(packet: &mut P) -> Option<()>;

    /// Reads the network headers, which start at `start` bytes.
    ///
    /// # Errors
    ///
    /// They are cut off or contradict each other, or no transport header follows.
    fn datagram<P: Packet>(packet: &P, start: usize) -> Result<Datagram<Self>, Reason>;

    /// The same of a header alone, without options or extensions, and of a whole datagram. `None`: it is something else.
    fn plain_datagram<P: Packet>(packet: &P, start: usize) -> Option<Datagram<Self>>;

    /// Whether an ICMP message of that type is an error about a datagram.
    fn is_error(kind: u8) -> bool;

    /// Whether an ICMP message of that type and code says that a datagram's receiver can't be reached, or doesn't
    /// want to be.
    fn is_unreachable(kind: u8, code: u8) -> bool;

    /// The header of a datagram whose beginning is quoted at `start` bytes, the protocol of what
    /// follows it, and where that begins. `None`: there isn't enough of it.
    fn quoted<P: Packet>(packet: &P, start: usize) -> Option<(Self::Header, u8, usize)>;

    /// Whether the checksum of a header, which starts at `start` bytes, is right, as a router must see to.
    fn is_intact<P: Packet>(
        packet: &P,
        header: &Self::Header,
        start: usize,
        transport_offset: usize,
    ) -> bool;
}

impl Family for Ipv4Address {
    const STAGES: [Stage; 7] = [
        Stage::Icmp,
        Stage::Fragment,
        Stage::TooBig,
        Stage::Open,
        Stage::Trouble,
        Stage::Record,
        Stage::LookUp,
    ];
    const IDENTIFIES_BY_PROTOCOL: bool = true;
    const ICMP: u8 = 1;
    const ICMP_COVERS_ADDRESSES: bool = false;
    const HEADER_HAS_CHECKSUM: bool = true;
    const LONGEST_QUOTE: usize = 576 - Ipv4Header::MINIMUM_LENGTH - IcmpHeader::LENGTH;
    const UDP_CHECKSUM_IS_OPTIONAL: bool = true;

    #[inline(always)]
    fn datagram<P: Packet>(packet: &P, start: usize) -> Result<Datagram<Self>, Reason> {
        let header: Ipv4Header = packet.read(start).ok_or(Reason::ShortFrame)?;
        let header_length = header.length().ok_or(Reason::BadIpHeader)?;
        let length = header.total_length();
        if length < header_length || start + length > packet.length() {
            return Err(Reason::BadIpLength);
        }
        Ok(Datagram {
            header,
            protocol: header.protocol(),
            transport_offset: start + header_length,
            length,
            part: Part {
                identification: header.identification(),
                is_fragment: header.is_fragment(),
                is_later: header.is_later_fragment(),
            },
        })
    }

    #[inline(always)]
    fn plain_datagram<P: Packet>(packet: &P, start: usize) -> Option<Datagram<Self>> {
        let header: Ipv4Header = packet.read(start)?;
        let length = header.total_length();
        let is_plain = header.length() == Some(Ipv4Header::MINIMUM_LENGTH)
            && !header.is_fragment()
            && length >= Ipv4Header::MINIMUM_LENGTH
            && start + length <= packet.length();
        is_plain.then_some(Datagram {
            header,
            protocol: header.protocol(),
            transport_offset: start + Ipv4Header::MINIMUM_LENGTH,
            length,
            part: Part { identification: header.identification(), ..Part::default() },
        })
    }

    #[inline(always)]
    fn too_big_message(longest: u16) -> IcmpHeader {
        IcmpHeader::fragmentation_needed(longest)
    }

    #[inline(always)]
    fn grow_for_message<P: Packet>(packet: &mut P) -> Option<()> {
        packet.grow::<{ Ipv4Header::MINIMUM_LENGTH + IcmpHeader::LENGTH }>()
    }

    /// Destination unreachable, time exceeded and parameter problem (RFC 792).
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 3 | 11 | 12)
    }

    /// Destination unreachable, but for want of fragmentation (RFC 792).
    #[inline(always)]
    fn is_unreachable(kind: u8, code: u8) -> bool {
        kind == 3 && code != 4
    }

    #[inline(always)]
    fn quoted<P: Packet>(packet: &P, start: usize) -> Option<(Ipv4Header, u8, usize)> {
        let header: Ipv4Header = packet.read(start)?;
        let length = header.length()?;
        if header.is_later_fragment() {
            return None;
        }
        Some((header, header.protocol(), start + length))
    }

    /// Sums the header and its options (RFC 1812, section 5.2.2).
    #[inline(always)]
    fn is_intact<P: Packet>(
        packet: &P,
        header: &Ipv4Header,
        start: usize,
        transport_offset: usize,
    ) -> bool {
        let start = start + Ipv4Header::MINIMUM_LENGTH;
        // Counted apart from the offset: else the verifier goes on with one path for each length.
        let words = (transport_offset - start) / 4;
        let mut options = 0;
        for word in 0..MAXIMUM_OPTION_WORDS {
            if word >= words {
                break;
            }
            let Some(word) = packet.read::<u32>(start + word * 4) else { return false };
            options += (word & 0xffff) + (word >> 16);
        }
        header.checksum_is_right(options)
    }
}

const MAXIMUM_OPTION_WORDS: usize = (Ipv4Header::MAXIMUM_LENGTH - Ipv4Header::MINIMUM_LENGTH) / 4;

impl Family for Ipv6Address {
    const STAGES: [Stage; 7] = [
        Stage::Icmpv6,
        Stage::FragmentIpv6,
        Stage::TooBigIpv6,
        Stage::OpenIpv6,
        Stage::TroubleIpv6,
        Stage::RecordIpv6,
        Stage::LookUpIpv6,
    ];
    const IDENTIFIES_BY_PROTOCOL: bool = false;
    const ICMP: u8 = 58;
    const ICMP_COVERS_ADDRESSES: bool = true;
    const HEADER_HAS_CHECKSUM: bool = false;
    const LONGEST_QUOTE: usize = 1280 - Ipv6Header::LENGTH - IcmpHeader::LENGTH;
    const UDP_CHECKSUM_IS_OPTIONAL: bool = false;

    #[inline(always)]
    fn datagram<P: Packet>(packet: &P, start: usize) -> Result<Datagram<Self>, Reason> {
        let header: Ipv6Header = packet.read(start).ok_or(Reason::ShortFrame)?;
        if !header.is_version_6() {
            return Err(Reason::BadIpHeader);
        }
        let length = header.datagram_length();
        if start + length > packet.length() {
            return Err(Reason::BadIpLength);
        }
        let mut protocol = header.next_header();
        let mut transport_offset = start + Ipv6Header::LENGTH;
        let mut part = Part::default();
        for _ in 0..MOST_EXTENSIONS {
            match protocol {
                Ipv6Fragment::PROTOCOL => {
                    let fragment: Ipv6Fragment =
                        packet.read(transport_offset).ok_or(Reason::BadIpLength)?;
                    part.identification = fragment.identification();
                    part.is_later = fragment.is_later();
                    part.is_fragment |= part.is_later || fragment.has_more();
                    protocol = fragment.next_header;
                    transport_offset += Ipv6Fragment::LENGTH;
                    if part.is_later {
                        break;
                    }
                }
                Ipv6Extension::HOP_BY_HOP | Ipv6Extension::ROUTING | Ipv6Extension::DESTINATION => {
                    let extension: Ipv6Extension =
                        packet.read(transport_offset).ok_or(Reason::BadIpLength)?;
                    if protocol == Ipv6Extension::ROUTING && extension.routes_on() {
                        // Its present destination isn't where it is going.
                        return Err(Reason::OtherProtocol);
                    }
                    protocol = extension.next_header;
                    transport_offset += extension.length();
                }
                _ => break,
            }
        }
        if transport_offset > start + length {
            return Err(Reason::BadIpLength);
        }
        Ok(Datagram { header, protocol, transport_offset, length, part })
    }

    #[inline(always)]
    fn plain_datagram<P: Packet>(packet: &P, start: usize) -> Option<Datagram<Self>> {
        let header: Ipv6Header = packet.read(start)?;
        let length = header.datagram_length();
        let is_plain = header.is_version_6() && start + length <= packet.length();
        is_plain.then_some(Datagram {
            header,
            protocol: header.next_header(),
            transport_offset: start + Ipv6Header::LENGTH,
            length,
            part: Part::default(),
        })
    }

    #[inline(always)]
    fn too_big_message(longest: u16) -> IcmpHeader {
        IcmpHeader::packet_too_big(longest)
    }

    #[inline(always)]
    fn grow_for_message<P: Packet>(packet: &mut P) -> Option<()> {
        packet.grow::<{ Ipv6Header::LENGTH + IcmpHeader::LENGTH }>()
    }

    /// Destination unreachable, packet too big, time exceeded and parameter problem (RFC 4443).
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 1..=4)
    }

    /// Destination unreachable (RFC 4443).
    #[inline(always)]
    fn is_unreachable(kind: u8, _code: u8) -> bool {
        kind == 1
    }

    #[inline(always)]
    fn quoted<P: Packet>(packet: &P, start: usize) -> Option<(Ipv6Header, u8, usize)> {
        let header: Ipv6Header = packet.read(start)?;
        if !header.is_version_6() {
            return None;
        }
        Some((header, header.next_header(), start + Ipv6Header::LENGTH))
    }

    #[inline(always)]
    fn is_intact<P: Packet>(_: &P, _: &Ipv6Header, _: usize, _: usize) -> bool {
        true
    }
}

/// How many extension headers are looked behind: as many as RFC 8200, section 4.1, puts before TCP.
const MOST_EXTENSIONS: usize = 5;
