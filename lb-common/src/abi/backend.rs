//! Backends: the servers behind a service.

use core::net::SocketAddr;

use bytemuck::{Pod, Zeroable};

use super::{AddressFamily, Forwarding, Link};
use crate::wire::{Address, Ipv4Address, Ipv6Address, NetworkU16, NetworkU32};

/// What the packet path needs to know of a backend. Index 0 is never a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Backend {
    /// Address in family-independent form.
    pub address: [NetworkU32; 4],
    /// How the backend, or the router before it, is reached. No interface: not resolved yet.
    pub link: Link,
    /// Index of the first address that full NAT may send from.
    pub nat_source: u32,
    /// How many there are from there on. Zero: none is known yet.
    pub nat_sources: u32,
    /// Port that it listens on.
    pub port: NetworkU16,
    /// Longest IP datagram that can be sent to it, in bytes: the MTU of the interface it is behind.
    pub maximum_datagram: u16,
    /// How new flows reach it.
    pub forwarding: Forwarding,
    /// Family of its address.
    pub family: AddressFamily,
    /// Longest segment that TCP may send to or from it, in bytes, as SYNs are made to say; zero: as they
    /// came.
    pub maximum_segment: u16,
}

impl Backend {
    /// Its address and port.
    pub fn socket_address(&self) -> SocketAddr {
        let ip = if self.family == AddressFamily::Ipv6 {
            Ipv6Address::from_words(self.address).into()
        } else {
            Ipv4Address::from_words(self.address).into()
        };
        SocketAddr::new(ip, self.port.get())
    }
}
