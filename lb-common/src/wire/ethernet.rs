//! Ethernet II frames (IEEE 802.3).

use core::fmt;

use bytemuck::{Pod, Zeroable};
use network_types::eth;

use super::NetworkU16;

/// A 48-bit hardware address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct MacAddress([u16; 3]);

impl MacAddress {
    /// All zero: no address is known.
    pub const UNKNOWN: Self = Self([0; 3]);

    /// From its bytes in the order they are sent.
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self([
            u16::from_ne_bytes([bytes[0], bytes[1]]),
            u16::from_ne_bytes([bytes[2], bytes[3]]),
            u16::from_ne_bytes([bytes[4], bytes[5]]),
        ])
    }

    /// The bytes in the order they are sent.
    pub const fn bytes(self) -> [u8; 6] {
        let [first, second, third] = self.0;
        let ([a, b], [c, d], [e, f]) =
            (first.to_ne_bytes(), second.to_ne_bytes(), third.to_ne_bytes());
        [a, b, c, d, e, f]
    }

    /// Its bytes as a number of 48 bits.
    #[inline(always)]
    pub const fn number(self) -> u64 {
        let [first, second, third] = self.0;
        (third as u64) << 32 | (second as u64) << 16 | first as u64
    }

    /// That of such a number.
    #[inline(always)]
    pub const fn of_number(number: u64) -> Self {
        Self([number as u16, (number >> 16) as u16, (number >> 32) as u16])
    }

    /// Whether this is [`Self::UNKNOWN`].
    #[inline(always)]
    pub const fn is_unknown(self) -> bool {
        self.0[0] | self.0[1] | self.0[2] == 0
    }

    /// Whether it is a group's: broadcast or multicast (IEEE 802, section 8.2.2). No station sends
    /// from such an address.
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        self.0[0].to_ne_bytes()[0] & 1 != 0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.bytes();
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// The protocol that a frame carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct EtherType(NetworkU16);

impl EtherType {
    /// IPv4 (RFC 894).
    pub const IPV4: Self = Self::from_host(eth::EtherType::Ipv4 as u16);
    /// IPv6 (RFC 2464).
    pub const IPV6: Self = Self::from_host(eth::EtherType::Ipv6 as u16);
    /// Address resolution (RFC 826).
    pub const ARP: Self = Self::from_host(eth::EtherType::Arp as u16);
    /// A customer VLAN tag (IEEE 802.1Q).
    pub const VLAN: Self = Self(NetworkU16::new(0x8100));
    /// A service VLAN tag (IEEE 802.1ad, "QinQ").
    pub const SERVICE_VLAN: Self = Self(NetworkU16::new(0x88a8));
    /// No protocol's.
    pub const ZERO: Self = Self(NetworkU16::new(0));

    /// network-types stores its EtherTypes as they stand in memory, big-endian.
    const fn from_host(in_memory: u16) -> Self {
        Self(NetworkU16::new(u16::from_be(in_memory)))
    }

    /// Whether this is [`Self::ZERO`].
    #[inline(always)]
    pub const fn is_zero(self) -> bool {
        self.0.raw() == 0
    }

    /// Whether this is [`Self::SERVICE_VLAN`].
    #[inline(always)]
    pub const fn is_service_vlan(self) -> bool {
        self.0.raw() == Self::SERVICE_VLAN.0.raw()
    }

    /// Whether a VLAN tag follows.
    #[inline(always)]
    pub const fn is_vlan(self) -> bool {
        self.0.raw() == Self::VLAN.0.raw() || self.is_service_vlan()
    }

    /// The number, such as 0x0800.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

/// The header of an Ethernet II frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct EthernetHeader {
    /// The station that the frame is for.
    pub destination: MacAddress,
    /// The station that sent it.
    pub source: MacAddress,
    /// What follows.
    pub ether_type: EtherType,
}

impl EthernetHeader {
    /// Bytes that the header takes.
    pub const LENGTH: usize = 14;
}

const _: () = assert!(size_of::<EthernetHeader>() == EthernetHeader::LENGTH);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ether_types_have_their_assigned_numbers() {
        assert_eq!(EtherType::IPV4.get(), 0x0800);
        assert_eq!(EtherType::IPV6.get(), 0x86dd);
        assert_eq!(EtherType::ARP.get(), 0x0806);
    }
}
