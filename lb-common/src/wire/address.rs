//! What IPv4 and IPv6 addresses have in common for the packet logic.

use core::hash::Hash;

use bytemuck::Pod;

use super::{ChecksumDelta, NetworkU16, NetworkU32};

/// An address of one family.
pub trait Address: Pod + Eq + Hash {
    /// The header that carries it.
    type Header: NetworkHeader<Address = Self>;

    /// The address from a map's family-independent form: four words, of which IPv4 uses the first.
    fn from_words(words: [NetworkU32; 4]) -> Self;

    /// What replacing `old` by `new` does to a checksum that covers it.
    fn checksum_delta(old: Self, new: Self) -> ChecksumDelta;

    /// One word that differs wherever two addresses do, as far as a word can.
    fn hash_word(self) -> u32;

    /// Whether no packet on a wire may come from this address.
    fn is_invalid_source(self) -> bool;
}

/// What an outer header takes from the one within.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// Differentiated services and congestion notification (RFC 2983, uniform; RFC 6040).
    pub service: u8,
    /// Identification, for IPv4.
    pub identification: NetworkU16,
    /// Whether routers mustn't fragment it.
    pub whole: bool,
}

/// What the headers of both families have in common.
pub trait NetworkHeader: Pod {
    /// The family's addresses.
    type Address;

    /// The part that forwarding changes.
    type Route: Pod;

    /// Offset of that part within the header, in bytes.
    const ROUTE_OFFSET: usize;

    /// The protocol number of such a datagram within another.
    const ENCAPSULATED_PROTOCOL: u8;

    /// What an outer header takes from this one.
    fn inherited(&self) -> Inherited;

    /// Whether more fragments follow, or this isn't the first.
    fn is_fragment(&self) -> bool;

    /// Hops that the datagram may still make.
    fn time_to_live(&self) -> u8;

    /// Whether the header's checksum is right, given the sum over the words of its options.
    fn checksum_is_right(&self, options: u32) -> bool;

    /// The changed part: other addresses and one hop less. `delta` is what that does to the
    /// header's checksum.
    fn forwarded(
        &self,
        source: Self::Address,
        destination: Self::Address,
        delta: ChecksumDelta,
    ) -> Self::Route;
}
