//! The network layer: from its header to the transport header, by address family.

use super::{Packet, Reason};
use crate::wire::{
    Address, Ipv4Address, Ipv4Header, Ipv6Address, Ipv6Extension, Ipv6Fragment, Ipv6Header,
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
    /// Whether it is a fragment, the first: more follow.
    pub(super) is_fragment: bool,
}

/// An address family, with what its headers need of the packet logic.
pub trait Family: Address {
    /// Whether UDP may go without a checksum.
    const UDP_CHECKSUM_IS_OPTIONAL: bool;

    /// Reads the network headers, which start at `start` bytes.
    ///
    /// # Errors
    ///
    /// They are cut off or contradict each other, or no transport header follows.
    fn datagram<P: Packet>(packet: &P, start: usize) -> Result<Datagram<Self>, Reason>;

    /// Whether the header's checksum is right, as a router must see to.
    fn is_intact<P: Packet>(packet: &P, start: usize, transport_offset: usize) -> bool;
}

impl Family for Ipv4Address {
    const UDP_CHECKSUM_IS_OPTIONAL: bool = true;

    #[inline(always)]
    fn datagram<P: Packet>(packet: &P, start: usize) -> Result<Datagram<Self>, Reason> {
        let header: Ipv4Header = packet.read(start).ok_or(Reason::ShortFrame)?;
        let header_length = header.length().ok_or(Reason::BadIpHeader)?;
        let length = header.total_length();
        if length < header_length || start + length > packet.length() {
            return Err(Reason::BadIpLength);
        }
        if header.is_later_fragment() {
            return Err(Reason::LaterFragment);
        }
        Ok(Datagram {
            header,
            protocol: header.protocol(),
            transport_offset: start + header_length,
            length,
            is_fragment: header.is_fragment(),
        })
    }

    /// Sums the header and its options (RFC 1812, section 5.2.2).
    #[inline(always)]
    fn is_intact<P: Packet>(packet: &P, start: usize, transport_offset: usize) -> bool {
        let Some(header) = packet.read::<Ipv4Header>(start) else { return false };
        let start = start + Ipv4Header::MINIMUM_LENGTH;
        // Counted apart from the offset: else the verifier goes on with one path for each length.
        let words = (transport_offset - start) / 4;
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
        header.checksum_is_right(options)
    }
}

const MAXIMUM_OPTION_WORDS: usize = (Ipv4Header::MAXIMUM_LENGTH - Ipv4Header::MINIMUM_LENGTH) / 4;

impl Family for Ipv6Address {
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
        let mut is_fragment = false;
        for _ in 0..MOST_EXTENSIONS {
            match protocol {
                Ipv6Fragment::PROTOCOL => {
                    let fragment: Ipv6Fragment =
                        packet.read(transport_offset).ok_or(Reason::BadIpLength)?;
                    if fragment.is_later() {
                        return Err(Reason::LaterFragment);
                    }
                    is_fragment |= fragment.has_more();
                    protocol = fragment.next_header;
                    transport_offset += Ipv6Fragment::LENGTH;
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
        Ok(Datagram { header, protocol, transport_offset, length, is_fragment })
    }

    #[inline(always)]
    fn is_intact<P: Packet>(_: &P, _: usize, _: usize) -> bool {
        true
    }
}

/// How many extension headers are looked behind: as many as RFC 8200, section 4.1, puts before TCP.
const MOST_EXTENSIONS: usize = 5;
