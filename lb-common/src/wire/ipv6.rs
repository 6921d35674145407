//! Internet Protocol version 6 (RFC 8200).

use core::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use bytemuck::{Pod, Zeroable};

use super::{
    Address, ChecksumDelta, EtherType, Inherited, NetworkHeader, NetworkU16, NetworkU32,
    OUTER_HOPS, Outer,
};

/// An IPv6 address in network byte order.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(transparent)]
pub struct Ipv6Address([NetworkU32; 4]);

impl Address for Ipv6Address {
    type Header = Ipv6Header;

    const WORDS: usize = 4;

    #[inline(always)]
    fn from_words(words: [NetworkU32; 4]) -> Self {
        Self(words)
    }

    #[inline(always)]
    fn words(self) -> [NetworkU32; 4] {
        self.0
    }

    #[inline(always)]
    fn checksum_delta(old: Self, new: Self) -> ChecksumDelta {
        ChecksumDelta::of_u32(old.0.map(NetworkU32::raw), new.0.map(NetworkU32::raw))
    }

    #[inline(always)]
    fn network(self) -> Self {
        let [first, second, ..] = self.0;
        Self([first, second, NetworkU32::new(0), NetworkU32::new(0)])
    }

    /// Multicast, unspecified and loopback addresses, and IPv4's in IPv6's form (RFC 4291, sections
    /// 2.5 and 2.7; RFC 6890).
    #[inline(always)]
    fn is_invalid_source(self) -> bool {
        let [first, second, third, fourth] = self.0.map(NetworkU32::get);
        let is_multicast = first >> 24 == 0xff;
        // ::/127, and ::ffff:0:0/96.
        let is_special = first | second == 0 && (third == 0xffff || (third == 0 && fourth <= 1));
        is_multicast || is_special
    }
}

impl From<Ipv6Addr> for Ipv6Address {
    fn from(address: Ipv6Addr) -> Self {
        let bits = address.to_bits();
        let word = |shift: u32| NetworkU32::new((bits >> shift) as u32);
        Self([word(96), word(64), word(32), word(0)])
    }
}

impl From<Ipv6Address> for Ipv6Addr {
    fn from(address: Ipv6Address) -> Self {
        let mut bits = 0;
        for word in address.0 {
            bits = (bits << 32) | u128::from(word.get());
        }
        Self::from_bits(bits)
    }
}

impl From<Ipv6Address> for IpAddr {
    fn from(address: Ipv6Address) -> Self {
        Ipv6Addr::from(address).into()
    }
}

impl fmt::Debug for Ipv6Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv6Addr::from(*self).fmt(formatter)
    }
}

/// An IPv6 header; extension headers follow it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv6Header {
    head: Ipv6Head,
    source: Ipv6Address,
    destination: Ipv6Address,
}

/// What comes before the addresses in an IPv6 header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv6Head {
    /// Version, traffic class and flow label.
    first: NetworkU32,
    payload_length: NetworkU16,
    next_header: u8,
    hop_limit: u8,
}

/// The word of an IPv6 header that counts hops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(4))]
pub struct Ipv6Hops {
    payload_length: NetworkU16,
    next_header: u8,
    hop_limit: u8,
}

/// The part of an IPv6 header that forwarding changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv6Route {
    hops: Ipv6Hops,
    source: Ipv6Address,
    destination: Ipv6Address,
}

impl Ipv6Header {
    /// Bytes that the header takes.
    pub const LENGTH: usize = 40;

    /// Whether the version is 6.
    #[inline(always)]
    pub const fn is_version_6(&self) -> bool {
        self.head.first.get() >> 28 == 6
    }

    /// The datagram's length in bytes, with this header.
    #[inline(always)]
    pub const fn datagram_length(&self) -> usize {
        Self::LENGTH + self.head.payload_length.get() as usize
    }

    /// The protocol number of what follows the header.
    #[inline(always)]
    pub const fn next_header(&self) -> u8 {
        self.head.next_header
    }
}

impl NetworkHeader for Ipv6Header {
    type Address = Ipv6Address;
    type Head = Ipv6Head;
    type Hops = Ipv6Hops;
    type Route = Ipv6Route;

    const LENGTH: usize = Self::LENGTH;
    const ROUTE_OFFSET: usize = 4;
    const ETHER_TYPE: EtherType = EtherType::IPV6;
    const ENCAPSULATED_PROTOCOL: u8 = 41;

    #[inline(always)]
    fn source(&self) -> Ipv6Address {
        self.source
    }

    #[inline(always)]
    fn destination(&self) -> Ipv6Address {
        self.destination
    }

    #[inline(always)]
    fn head(&self) -> Ipv6Head {
        self.head
    }

    #[inline(always)]
    fn whole(head: Ipv6Head, source: Ipv6Address, destination: Ipv6Address) -> Self {
        Self { head, source, destination }
    }

    #[inline(always)]
    fn time_to_live(head: Ipv6Head) -> u8 {
        head.hop_limit
    }

    #[inline(always)]
    fn inherited(head: Ipv6Head) -> Inherited {
        Inherited {
            service: (head.first.get() >> 20) as u8,
            // Routers never fragment it, so that it needs no identification (RFC 6864).
            whole: true,
            identification: NetworkU16::new(0),
        }
    }

    #[inline(always)]
    fn around(outer: &Outer<'_>) -> Self {
        // The flow label tells flows apart for routers that spread them (RFC 6438).
        let label = outer.flow & 0x000f_ffff;
        let first = 0x6000_0000 | (u32::from(outer.inherited.service) << 20) | label;
        Self {
            head: Ipv6Head {
                first: NetworkU32::new(first),
                payload_length: NetworkU16::new(outer.payload_length),
                next_header: outer.protocol,
                hop_limit: OUTER_HOPS,
            },
            source: Ipv6Address::from_words(*outer.source),
            destination: Ipv6Address::from_words(*outer.destination),
        }
    }

    #[inline(always)]
    fn one_hop_fewer(
        Ipv6Head { payload_length, next_header, hop_limit, .. }: Ipv6Head,
    ) -> Ipv6Hops {
        Ipv6Hops { payload_length, next_header, hop_limit: hop_limit.wrapping_sub(1) }
    }

    #[inline(always)]
    fn changed(
        head: Ipv6Head,
        source: Ipv6Address,
        destination: Ipv6Address,
        hops: u8,
        _delta: ChecksumDelta,
    ) -> Ipv6Route {
        let Ipv6Head { payload_length, next_header, hop_limit, .. } = head;
        let hop_limit = hop_limit.wrapping_sub(hops);
        Ipv6Route { hops: Ipv6Hops { payload_length, next_header, hop_limit }, source, destination }
    }
}

const _: () = assert!(size_of::<Ipv6Header>() == Ipv6Header::LENGTH);

/// The beginning of an extension header: hop-by-hop options, routing or destination options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv6Extension {
    /// The protocol number of what follows.
    pub next_header: u8,
    length: u8,
    kind: u8,
    segments_left: u8,
}

impl Ipv6Extension {
    /// Protocol number of hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// Protocol number of the routing header.
    pub const ROUTING: u8 = 43;
    /// Protocol number of destination options.
    pub const DESTINATION: u8 = 60;

    /// Bytes that the header takes, 8 to 2048.
    #[inline(always)]
    pub const fn length(&self) -> usize {
        (self.length as usize + 1) * 8
    }

    /// Whether a routing header names stations that the datagram has yet to pass.
    #[inline(always)]
    pub const fn routes_on(&self) -> bool {
        self.segments_left != 0
    }
}

/// The fragment header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv6Fragment {
    /// The protocol number of what follows.
    pub next_header: u8,
    reserved: u8,
    offset_and_more: NetworkU16,
    identification: NetworkU32,
}

impl Ipv6Fragment {
    /// Its protocol number.
    pub const PROTOCOL: u8 = 44;
    /// Bytes that it takes.
    pub const LENGTH: usize = 8;

    /// What all fragments of a datagram have in common, as it stands in the header.
    #[inline(always)]
    pub const fn identification(&self) -> u32 {
        self.identification.raw()
    }

    /// Whether this isn't the first fragment, so that no ports are in it.
    #[inline(always)]
    pub const fn is_later(&self) -> bool {
        self.offset_and_more.get() >> 3 != 0
    }

    /// Whether more fragments follow.
    #[inline(always)]
    pub const fn has_more(&self) -> bool {
        self.offset_and_more.get() & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_their_words_and_their_text() {
        let text: Ipv6Addr = "2001:db8:1:2:3:4:5:6".parse().expect("an address");
        let address = Ipv6Address::from(text);
        assert_eq!(Ipv6Addr::from(Ipv6Address::from_words(address.words())), text);
        assert_eq!(bytemuck::bytes_of(&address), text.octets());
    }

    #[test]
    fn only_addresses_of_a_single_station_elsewhere_are_sources() {
        let is_invalid = |text: &str| {
            let address: Ipv6Addr = text.parse().expect("an address");
            Ipv6Address::from(address).is_invalid_source()
        };
        for bad in ["::", "::1", "ff02::1", "ff0e::1", "::ffff:192.0.2.1"] {
            assert!(is_invalid(bad), "{bad}");
        }
        for good in ["2001:db8::1", "fe80::1", "fd00::1", "64:ff9b::192.0.2.1", "::2"] {
            assert!(!is_invalid(good), "{good}");
        }
    }
}
