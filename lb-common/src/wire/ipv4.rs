//! Internet Protocol version 4 (RFC 791).

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use bytemuck::{Pod, Zeroable};
use network_types::ip::IpProto;

use super::{
    Address, Checksum, ChecksumDelta, EtherType, Inherited, NetworkHeader, NetworkU16, NetworkU32,
    OUTER_HOPS, Outer, checksum::sum_of,
};

/// TCP's protocol number.
pub const PROTOCOL_TCP: u8 = IpProto::Tcp as u8;
/// UDP's protocol number.
pub const PROTOCOL_UDP: u8 = IpProto::Udp as u8;

/// The bit in the fragment field that forbids routers to fragment.
const DONT_FRAGMENT: NetworkU16 = NetworkU16::new(0x4000);

/// An IPv4 address in network byte order.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(transparent)]
pub struct Ipv4Address(NetworkU32);

impl Address for Ipv4Address {
    type Header = Ipv4Header;

    const WORDS: usize = 1;

    #[inline(always)]
    fn from_words(words: [NetworkU32; 4]) -> Self {
        Self(words[0])
    }

    #[inline(always)]
    fn words(self) -> [NetworkU32; 4] {
        let zero = NetworkU32::new(0);
        [self.0, zero, zero, zero]
    }

    #[inline(always)]
    fn checksum_delta(old: Self, new: Self) -> ChecksumDelta {
        ChecksumDelta::of_u32([old.0.raw()], [new.0.raw()])
    }

    #[inline(always)]
    fn network(self) -> Self {
        self
    }

    /// "This network", loopback, multicast, reserved and broadcast addresses (RFC 1812, section
    /// 5.3.7; RFC 6890).
    #[inline(always)]
    fn is_invalid_source(self) -> bool {
        let first = self.0.get() >> 24;
        first == 0 || first == 127 || first >= 224
    }
}

impl From<Ipv4Addr> for Ipv4Address {
    fn from(address: Ipv4Addr) -> Self {
        Self(NetworkU32::new(address.to_bits()))
    }
}

impl From<Ipv4Address> for Ipv4Addr {
    fn from(address: Ipv4Address) -> Self {
        Self::from_bits(address.0.get())
    }
}

impl From<Ipv4Address> for IpAddr {
    fn from(address: Ipv4Address) -> Self {
        Ipv4Addr::from(address).into()
    }
}

impl fmt::Debug for Ipv4Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv4Addr::from(*self).fmt(formatter)
    }
}

/// The fixed part of an IPv4 header; options follow it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv4Header {
    head: Ipv4Head,
    source: Ipv4Address,
    destination: Ipv4Address,
}

/// What comes before the addresses in an IPv4 header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(4))]
pub struct Ipv4Head {
    version_and_length: u8,
    service: u8,
    total_length: NetworkU16,
    identification: NetworkU16,
    fragment: NetworkU16,
    time_to_live: u8,
    protocol: u8,
    checksum: Checksum,
}

/// The word of an IPv4 header that counts hops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(4))]
pub struct Ipv4Hops {
    time_to_live: u8,
    protocol: u8,
    checksum: Checksum,
}

/// The part of an IPv4 header that forwarding changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv4Route {
    hops: Ipv4Hops,
    source: Ipv4Address,
    destination: Ipv4Address,
}

impl Ipv4Header {
    /// Bytes that the header takes without options.
    pub const MINIMUM_LENGTH: usize = 20;
    /// Bytes that the header takes with all the options it can hold.
    pub const MAXIMUM_LENGTH: usize = 60;
    /// What counting the time to live down by one does to the header's checksum.
    pub const TIME_TO_LIVE_DELTA: ChecksumDelta =
        ChecksumDelta::of_u16(u16::from_ne_bytes([1, 0]), 0);

    /// The header's length in bytes, options included, or `None` where the version isn't 4 or the
    /// length is below the minimum.
    #[inline(always)]
    pub const fn length(&self) -> Option<usize> {
        let words = self.head.version_and_length.wrapping_sub(0x40);
        if words < 5 || words > 15 { None } else { Some(words as usize * 4) }
    }

    /// The datagram's length in bytes, header included.
    #[inline(always)]
    pub const fn total_length(&self) -> usize {
        self.head.total_length.get() as usize
    }

    /// What all fragments of a datagram have in common, as it stands in the header.
    #[inline(always)]
    pub const fn identification(&self) -> u32 {
        self.head.identification.raw() as u32
    }

    /// Whether this is a fragment other than the first, so that no ports are in it.
    #[inline(always)]
    pub const fn is_later_fragment(&self) -> bool {
        self.head.fragment.raw() & NetworkU16::new(0x1fff).raw() != 0
    }

    /// The protocol of the payload, as assigned by IANA.
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        self.head.protocol
    }

    /// Whether this is a fragment: more follow, or it isn't the first.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        self.head.fragment.raw() & NetworkU16::new(0x3fff).raw() != 0
    }

    /// Whether the header's checksum is right, given the sum over the words of its options.
    #[inline(always)]
    pub fn checksum_is_right(&self, options: u32) -> bool {
        Checksum::is_right(self.sum() + u64::from(options))
    }

    /// The sum of the fixed part's words, checksum included.
    #[inline(always)]
    fn sum(&self) -> u64 {
        sum_of(bytemuck::cast::<Self, [u32; 5]>(*self))
    }
}

impl NetworkHeader for Ipv4Header {
    type Address = Ipv4Address;
    type Head = Ipv4Head;
    type Hops = Ipv4Hops;
    type Route = Ipv4Route;

    const LENGTH: usize = Self::MINIMUM_LENGTH;
    const ROUTE_OFFSET: usize = 8;
    const ETHER_TYPE: EtherType = EtherType::IPV4;
    const ENCAPSULATED_PROTOCOL: u8 = IpProto::Ipv4 as u8;

    #[inline(always)]
    fn source(&self) -> Ipv4Address {
        self.source
    }

    #[inline(always)]
    fn destination(&self) -> Ipv4Address {
        self.destination
    }

    #[inline(always)]
    fn head(&self) -> Ipv4Head {
        self.head
    }

    #[inline(always)]
    fn whole(head: Ipv4Head, source: Ipv4Address, destination: Ipv4Address) -> Self {
        Self { head, source, destination }
    }

    #[inline(always)]
    fn time_to_live(head: Ipv4Head) -> u8 {
        head.time_to_live
    }

    #[inline(always)]
    fn inherited(head: Ipv4Head) -> Inherited {
        Inherited {
            service: head.service,
            whole: head.fragment.raw() & DONT_FRAGMENT.raw() != 0,
            identification: head.identification,
        }
    }

    #[inline(always)]
    fn around(outer: &Outer<'_>) -> Self {
        let Inherited { service, whole, identification } = outer.inherited;
        let mut header = Self {
            head: Ipv4Head {
                version_and_length: 0x45,
                service,
                total_length: NetworkU16::new(Self::MINIMUM_LENGTH as u16 + outer.payload_length),
                identification,
                fragment: if whole { DONT_FRAGMENT } else { NetworkU16::new(0) },
                time_to_live: OUTER_HOPS,
                protocol: outer.protocol,
                checksum: Checksum::NONE,
            },
            source: Ipv4Address::from_words(*outer.source),
            destination: Ipv4Address::from_words(*outer.destination),
        };
        header.head.checksum = Checksum::from_words(header.sum());
        header
    }

    /// In bytes as they stand in the header, the lowest one first: one less in the first is one more in the third, which is what the
    /// checksum begins with, and its carry goes round (RFC 1624).
    #[inline(always)]
    fn one_hop_fewer(Ipv4Head { time_to_live, protocol, checksum, .. }: Ipv4Head) -> Ipv4Hops {
        let word: u32 = bytemuck::cast(Ipv4Hops { time_to_live, protocol, checksum });
        let word = u64::from(u32::from_le(word));
        let carry = (word + 0x1_ffff) >> 32;
        bytemuck::cast(((word + 0xffff + (carry << 16)) as u32).to_le())
    }

    #[inline(always)]
    fn changed(
        head: Ipv4Head,
        source: Ipv4Address,
        destination: Ipv4Address,
        hops: u8,
        delta: ChecksumDelta,
    ) -> Ipv4Route {
        let hops = Ipv4Hops {
            time_to_live: head.time_to_live.wrapping_sub(hops),
            protocol: head.protocol,
            checksum: head.checksum.updated(delta),
        };
        Ipv4Route { hops, source, destination }
    }
}

const _: () = assert!(size_of::<Ipv4Header>() == Ipv4Header::MINIMUM_LENGTH);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_down_the_time_to_live_keeps_the_checksum_right() {
        for (time_to_live, identification) in
            (1..=255u8).flat_map(|hops| (0..=u16::MAX).map(move |id| (hops, id)))
        {
            let mut header = Ipv4Header::zeroed();
            header.head.time_to_live = time_to_live;
            header.head.protocol = PROTOCOL_TCP;
            header.head.identification = NetworkU16::new(identification);
            header.head.checksum = Checksum::from_words(header.sum());
            let hops = Ipv4Header::one_hop_fewer(header.head());
            assert_eq!((hops.time_to_live, hops.protocol), (time_to_live - 1, PROTOCOL_TCP));
            let delta = Ipv4Header::TIME_TO_LIVE_DELTA;
            assert_eq!(hops.checksum, header.head.checksum.updated(delta));
            header.head.time_to_live = hops.time_to_live;
            header.head.checksum = hops.checksum;
            assert!(header.checksum_is_right(0), "{time_to_live}");
            header.head.service = 1;
            assert!(!header.checksum_is_right(0), "{time_to_live}");
        }
    }

    #[test]
    fn only_version_four_and_a_whole_header_have_a_length() {
        let length = |version_and_length| {
            let head = Ipv4Head { version_and_length, ..Ipv4Head::zeroed() };
            Ipv4Header { head, ..Ipv4Header::zeroed() }.length()
        };
        assert_eq!(length(0x45), Some(20));
        assert_eq!(length(0x4f), Some(60));
        for bad in [0x00, 0x05, 0x44, 0x40, 0x35, 0x50, 0x65, 0xf5] {
            assert_eq!(length(bad), None, "{bad:#x}");
        }
    }
}
