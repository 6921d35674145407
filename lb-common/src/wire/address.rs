//! What IPv4 and IPv6 addresses have in common for the packet logic.

use core::{hash::Hash, net::IpAddr};

use bytemuck::Pod;

use super::{ChecksumDelta, EtherType, NetworkU16, NetworkU32};

/// An address of one family.
pub trait Address: Pod + Eq + Hash + Into<IpAddr> {
    /// The header that carries it.
    type Header: NetworkHeader<Address = Self>;

    /// How many of its words in family-independent form are used.
    const WORDS: usize;

    /// The address from a map's family-independent form: four words, of which IPv4 uses the first.
    fn from_words(words: [NetworkU32; 4]) -> Self;

    /// The address in a map's family-independent form.
    fn words(self) -> [NetworkU32; 4];

    /// What replacing `old` by `new` does to a checksum that covers it.
    fn checksum_delta(old: Self, new: Self) -> ChecksumDelta;

    /// The network that one client may have addresses in at will: of IPv4 the address itself, of IPv6 its
    /// first 64 bits (RFC 7421).
    #[must_use]
    fn network(self) -> Self;

    /// The sum over the words of the pseudo-header of a transport protocol's checksum, for so many bytes
    /// (RFC 9293, section 3.1; RFC 8200, section 8.1).
    #[inline(always)]
    fn pseudo_header_sum(source: Self, destination: Self, protocol: u8, length: u16) -> u32 {
        let mut sum = u32::from(NetworkU16::new(length).raw());
        sum += u32::from(NetworkU16::new(protocol.into()).raw());
        for address in [source.words(), destination.words()] {
            for word in address.iter().take(Self::WORDS) {
                sum += (word.raw() & 0xffff) + (word.raw() >> 16);
            }
        }
        sum
    }

    /// Whether no packet on a wire may come from this address.
    fn is_invalid_source(self) -> bool;
}

/// What an outer header takes over from the one within.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// Differentiated services and congestion notification (RFC 2983, uniform; RFC 6040).
    pub service: u8,
    /// Whether routers mustn't fragment it.
    pub whole: bool,
    /// Identification, for IPv4.
    pub identification: NetworkU16,
}

impl Inherited {
    /// Of no header, for a datagram of our own, which routers mustn't fragment.
    pub const NONE: Self = Self { service: 0, whole: true, identification: NetworkU16::new(0) };
}

/// What differs between one outer header and another.
#[derive(Clone, Copy, Debug)]
pub struct Outer<'of> {
    /// What it takes over.
    pub inherited: Inherited,
    /// Length of what follows the outer header, in bytes.
    pub payload_length: u16,
    /// Protocol of what follows.
    pub protocol: u8,
    /// The sender, in family-independent form.
    pub source: &'of [NetworkU32; 4],
    /// The receiver, likewise.
    pub destination: &'of [NetworkU32; 4],
    /// A number that tells the flow from others.
    pub flow: u32,
}

/// Hops that an outer datagram may make (RFC 1700's default).
pub const OUTER_HOPS: u8 = 64;

/// What the headers of both families have in common.
pub trait NetworkHeader: Pod {
    /// The family's addresses.
    type Address;

    /// What comes before the addresses.
    type Head: Pod;

    /// The word that counts hops, and what else is in it.
    type Hops: Pod;

    /// The part that forwarding changes.
    type Route: Pod;

    /// Bytes that the header takes without options or extensions.
    const LENGTH: usize;

    /// Offset of the changed part within the header, in bytes, which begins with the word that counts hops.
    const ROUTE_OFFSET: usize;

    /// The protocol number of such a datagram in a frame.
    const ETHER_TYPE: EtherType;

    /// The protocol number of such a datagram within another.
    const ENCAPSULATED_PROTOCOL: u8;

    /// The sender.
    fn source(&self) -> Self::Address;

    /// The receiver.
    fn destination(&self) -> Self::Address;

    /// What comes before the addresses.
    fn head(&self) -> Self::Head;

    /// The header of which these are the parts.
    fn whole(head: Self::Head, source: Self::Address, destination: Self::Address) -> Self;

    /// Hops that the datagram may still make.
    fn time_to_live(head: Self::Head) -> u8;

    /// What an outer header takes over.
    fn inherited(head: Self::Head) -> Inherited;

    /// A header without options around a datagram.
    fn around(outer: &Outer<'_>) -> Self;

    /// The word that counts hops, of which there is at least one, with one less, where nothing else changes.
    fn one_hop_fewer(head: Self::Head) -> Self::Hops;

    /// The changed part of a header: other addresses, and hops that many less. `delta` is what that does to the header's
    /// checksum, where it has one.
    fn changed(
        head: Self::Head,
        source: Self::Address,
        destination: Self::Address,
        hops: u8,
        delta: ChecksumDelta,
    ) -> Self::Route;
}
