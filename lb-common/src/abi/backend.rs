//! Backends: the servers behind a service.

use core::net::SocketAddr;

use bytemuck::{Pod, Zeroable};

use super::{AddressFamily, Forwarding, Hop, word::word};
use crate::wire::{
    Address, Ipv4Address, Ipv4Header, Ipv6Address, Ipv6Header, NetworkU16, NetworkU32, UdpHeader,
};

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
///
/// Steady packets look at its first half alone, but for what an outer header is from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Backend {
    /// Address in family-independent form.
    pub address: [NetworkU32; 4],
    /// How the backend, or the router before it, is reached.
    pub next_hop: Hop,
    /// Index of its service.
    pub service: u32,
    /// See [`Self::longest`] and [`Self::set_maximum_datagram`].
    pub longest: [u16; Forwarding::PLACES],
    /// Port that it listens on.
    pub port: NetworkU16,
    /// What becomes of its flows.
    pub fate: Fate,
    /// How new flows reach it.
    pub forwarding: Forwarding,
    /// Family of its address.
    pub family: AddressFamily,
    /// 1: new flows may go to it.
    pub takes_new_flows: u8,
    /// 1: its clients are remembered, since its service has affinity.
    pub remembers_clients: u8,
    /// 1: its checks say that it is down.
    pub is_down: u8,
    /// Longest segment that TCP may send to or from it, in bytes, as SYNs are made to say; zero: as they
    /// came.
    pub maximum_segment: u16,
    /// How many connections it is to have, relative to the other backends of its service.
    pub weight: u16,
    /// Index of the first address that full NAT may send from.
    pub nat_source: u32,
    /// The address that outer headers are from, in family-independent form.
    pub outer_source: [NetworkU32; 4],
    /// Index of the first word of its pools of source ports, one for each address, in the map of all
    /// pools.
    pub ports: u32,
    /// How many addresses full NAT may send from, from the first on. Zero: none is known yet.
    pub nat_sources: u16,
    /// Zeros: with them, where a backend lies is found by a shift.
    pub reserved: [u16; 17],
}

impl Backend {
    /// Longest IP datagram that can be sent to it like that, in bytes.
    #[inline(always)]
    pub const fn longest(&self, forwarding: Forwarding) -> u16 {
        self.longest[forwarding.place()]
    }

    /// Says how long a datagram may be on the way there, in bytes: its outer header, if there is one, included. Its family is known.
    pub fn set_maximum_datagram(&mut self, maximum: u16) {
        for forwarding in Forwarding::ALL {
            let overhead = self.overhead(forwarding) as u16;
            self.longest[forwarding.place()] = maximum.saturating_sub(overhead);
        }
    }

    /// Bytes that outer headers to it take.
    const fn overhead(&self, forwarding: Forwarding) -> usize {
        let outer = match self.family {
            AddressFamily::Ipv6 => Ipv6Header::LENGTH,
            _ => Ipv4Header::MINIMUM_LENGTH,
        };
        match forwarding {
            Forwarding::Ipip => outer,
            Forwarding::Gue => outer + UdpHeader::LENGTH,
            _ => 0,
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outer_headers_take_their_part_of_the_longest_datagram() {
        for (family, ipip, gue) in
            [(AddressFamily::Ipv4, 1480, 1472), (AddressFamily::Ipv6, 1460, 1452)]
        {
            let mut backend = Backend { family, ..Backend::default() };
            backend.set_maximum_datagram(1500);
            let longest = Forwarding::ALL.map(|forwarding| backend.longest(forwarding));
            assert_eq!(longest, [1500, 1500, 1500, ipip, gue]);
            backend.set_maximum_datagram(30);
            assert_eq!(backend.longest(Forwarding::Gue), 30_u16.saturating_sub(1500 - gue));
        }
    }
}
