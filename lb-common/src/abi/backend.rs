//! Backends: the servers behind a service.

use core::net::SocketAddr;

use bytemuck::{Pod, Zeroable};

use super::{AddressFamily, Forwarding, Hop, word::word};
use crate::wire::{Address, Ipv4Address, Ipv6Address, NetworkU16, NetworkU32};

word! {
    /// What becomes of the flows of a backend.
    Fate {
        /// They go on.
        Keep = 0 "keep",
        /// The backend is down: their clients are told by a reset.
        Reset = 1 "reset",
        /// The backend is down: they are forgotten, and their next packet is led elsewhere if it may be.
        Move = 2 "move",
    }
}

/// What the packet path needs to know of a backend. Index 0 is never a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Backend {
    /// Address in family-independent form.
    pub address: [NetworkU32; 4],
    /// How the backend, or the router before it, is reached.
    pub next_hop: Hop,
    /// Index of the first address that full NAT may send from.
    pub nat_source: u32,
    /// Index of its service.
    pub service: u32,
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
    /// Index of the first word of its pools of source ports, one for each address, in the map of all
    /// pools.
    pub ports: u32,
    /// 1: new flows may go to it.
    pub takes_new_flows: u8,
    /// 1: its clients are remembered, since its service has affinity.
    pub remembers_clients: u8,
    /// What becomes of its flows.
    pub fate: Fate,
    /// 1: its checks say that it is down.
    pub is_down: u8,
    /// How many addresses full NAT may send from, from the first on. Zero: none is known yet.
    pub nat_sources: u16,
    /// How many connections it is to have, relative to the other backends of its service.
    pub weight: u16,
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
