//! Protocol headers as they stand in a frame, in network byte order.
//!
//! Values in network byte order are newtypes with private fields: only their constructors and
//! accessors convert.

mod address;
mod byte_order;
mod checksum;
mod ethernet;
mod ipv4;
mod tcp;
mod udp;

pub use address::{Address, Inherited, NetworkHeader};
pub use byte_order::{NetworkU16, NetworkU32};
pub use checksum::{Checksum, ChecksumDelta};
pub use ethernet::{EtherType, EthernetHeader, MacAddress};
pub use ipv4::{Ipv4Address, Ipv4Header, Ipv4Route, OuterIpv4, PROTOCOL_TCP, PROTOCOL_UDP};
pub use tcp::{TcpFlags, TcpHeader};
pub use udp::UdpHeader;
