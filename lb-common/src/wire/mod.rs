//! Protocol headers as they stand in a frame, in network byte order.
//!
//! Values in network byte order are newtypes with private fields: only their constructors and
//! accessors convert.

mod address;
mod byte_order;
mod checksum;
mod ethernet;
mod icmp;
mod ipv4;
mod ipv6;
mod tcp;
mod udp;
mod vlan;

pub use address::{Address, Inherited, NetworkHeader, OUTER_HOPS, Outer};
pub use byte_order::{NetworkU16, NetworkU32};
pub use checksum::{Checksum, ChecksumDelta};
pub use ethernet::{EtherType, EthernetHeader, MacAddress};
pub use icmp::IcmpHeader;
pub use ipv4::{Ipv4Address, Ipv4Header, Ipv4Hops, Ipv4Route, PROTOCOL_TCP, PROTOCOL_UDP};
pub use ipv6::{Ipv6Address, Ipv6Extension, Ipv6Fragment, Ipv6Header, Ipv6Hops, Ipv6Route};
pub use tcp::{TcpFlags, TcpHeader};
pub use udp::UdpHeader;
pub use vlan::{Vlan, VlanTag, VlanTags, Vlans};

/// An address in a map's family-independent form.
pub fn words(address: core::net::IpAddr) -> [NetworkU32; 4] {
    match address {
        core::net::IpAddr::V4(address) => Ipv4Address::from(address).words(),
        core::net::IpAddr::V6(address) => Ipv6Address::from(address).words(),
    }
}
