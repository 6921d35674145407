//! What the kernel knows of interfaces, routes and neighbours.

mod frames;
mod offloads;
mod read;
mod vantage;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use lb_common::wire::{MacAddress, Vlan, Vlans};

pub use frames::FrameSender;
pub use offloads::trouble;
pub use read::{NetlinkError, Reader};
pub use vantage::Vantage;
pub use watch::{Wish, watch};

use crate::dataplane::Mode;

/// Interfaces on top of each other that are looked through.
const DEEPEST_STACK: u32 = 8;

/// A picture of the network around this host, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Interfaces by index.
    pub links: BTreeMap<u32, Link>,
    /// The interface of the default route.
    pub default_interface: Option<u32>,
    /// Addresses by the index of the interface that has them.
    pub addresses: BTreeSet<(u32, IpAddr)>,
    /// How each backend is reached.
    pub next_hops: BTreeMap<IpAddr, Result<NextHop, Unresolved>>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its hardware address; [`MacAddress::UNKNOWN`] where it has none.
    pub mac: MacAddress,
    /// Longest datagram that it takes, in bytes.
    pub mtu: u32,
    /// Whether frames come and go: it is switched on, and there is a carrier.
    pub up: bool,
    /// The interface below it, if it is a VLAN or a macvlan, on which Keepalived puts virtual addresses.
    pub below: Option<Below>,
    /// Whether it is one end of a virtual cable.
    pub is_veth: bool,
    /// The XDP program that is attached to it.
    pub xdp: Option<AttachedProgram>,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachedProgram {
    /// How it is attached.
    pub mode: Mode,
    /// Its number in the kernel; 0 if it isn't told.
    pub id: u32,
}

/// What a VLAN or a macvlan is on top of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Below {
    /// Index of the interface.
    pub interface: u32,
    /// The VLAN; none of a macvlan.
    pub vlan: Vlan,
}

/// How an address is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The interface that leads there.
    pub interface: u32,
    /// Hardware address of the station itself, or of the router before it.
    pub station: MacAddress,
    /// The address that this host sends from.
    pub source: IpAddr,
    /// The router on the way, unless the address is on the interface's own network.
    pub router: Option<IpAddr>,
}

/// Why it isn't known how an address is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// No route leads there.
    NoRoute,
    /// It is this host's own.
    Own,
    /// The address, or that of the router before it, has no hardware address yet.
    NoNeighbour(IpAddr),
}

impl fmt::Display for Unresolved {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoute => formatter.write_str("no route to it"),
            Self::Own => formatter.write_str("the address is this host's own"),
            Self::NoNeighbour(address) => {
                write!(formatter, "{address} doesn't say its hardware address")
            }
        }
    }
}

impl Network {
    /// Whether an address that packets may go to is this host's own.
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.next_hops.get(&address) == Some(&Err(Unresolved::Own))
    }

    /// An interface's index by its name.
    pub fn index(&self, name: &str) -> Option<u32> {
        self.links.iter().find(|(_, link)| link.name == name).map(|(index, _)| *index)
    }

    /// The one among `interfaces` that an interface is, or that it is on top of as a VLAN or a macvlan,
    /// and the VLANs that its frames are in there. Of tags, a frame has no more than two.
    pub fn base(&self, interface: u32, interfaces: &[u32]) -> Option<(u32, Vlans)> {
        let (mut base, mut vlans) = (interface, Vlans::NONE);
        // Nothing is on top of itself, but two answers of the kernel may be out of step.
        for _ in 0..DEEPEST_STACK {
            if interfaces.contains(&base) {
                return Some((base, vlans));
            }
            let below = self.links.get(&base)?.below?;
            if !below.vlan.is_none() {
                let [outer, Vlan::NONE] = vlans.0 else { return None };
                vlans = Vlans([below.vlan, outer]);
            }
            base = below.interface;
        }
        None
    }
}
