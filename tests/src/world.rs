//! What the packet logic is set up with in packet tests.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use lb_common::{
    abi::{
        Access, AddressFamily, Backend, Fate, Forwarding, Hop, LocalMac, Ring, Service, ServiceKey,
        Settings, VERSION, generation_start, pool_words, service_options,
    },
    wire::{Ipv4Address, Ipv6Address, MacAddress, NetworkU16, NetworkU32, Vlan, Vlans, words},
};

/// An address and a port.
pub type Socket = (IpAddr, u16);

const fn v4(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, last))
}

const fn v6(last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, last))
}

/// The service's address and port.
pub const VIP: Socket = (v4(100), 8080);
/// A service without backends.
pub const EMPTY_VIP: Socket = (v4(100), 8081);
/// A service without backends that tells nobody.
pub const SILENT_VIP: Socket = (v4(100), 8091);
/// A service whose backends get connections in turn.
pub const TURN_VIP: Socket = (v4(100), 8092);
/// A service whose backends are chosen by their connections.
pub const LEAST_VIP: Socket = (v4(100), 8093);
/// A service whose backends have no more connections than their share.
pub const BOUNDED_VIP: Socket = (v4(100), 8094);
/// A service on the very address, and a port of the range, that full NAT sends from.
pub const NAT_VIP: Socket = (NAT_SOURCE, 8082);
/// A service whose backend isn't resolved yet.
pub const UNRESOLVED_VIP: Socket = (v4(100), 8083);
/// A service on IPv6 by full NAT.
pub const VIP_IPV6: Socket = (v6(0x100), 8080);
/// The backends of the first service.
pub const BACKENDS: [u32; 3] = [1, 2, 3];
/// The weight of each backend.
const WEIGHT: u32 = 100;
/// The backends of the service on IPv6.
pub const BACKENDS_IPV6: [u32; 2] = [11, 12];
/// Services of the other forwardings, each with the backend of the number beside it. Two share one.
pub const OTHER_FORWARDINGS: [(Forwarding, Socket, u32); 13] = [
    (Forwarding::Nat, (VIP.0, 8084), 5),
    (Forwarding::Dsr, (VIP.0, 8085), 6),
    (Forwarding::Ipip, (VIP.0, 8086), 7),
    (Forwarding::Gue, (VIP.0, 8087), 8),
    (Forwarding::Nat, (VIP.0, 8088), 5),
    (Forwarding::Ipip, (VIP.0, 8089), 9),
    (Forwarding::Gue, (VIP.0, 8090), 10),
    (Forwarding::Nat, (VIP_IPV6.0, 8084), 13),
    (Forwarding::Dsr, (VIP_IPV6.0, 8085), 14),
    (Forwarding::Ipip, (VIP_IPV6.0, 8086), 15),
    (Forwarding::Gue, (VIP_IPV6.0, 8087), 16),
    (Forwarding::Ipip, (VIP_IPV6.0, 8089), 17),
    (Forwarding::Gue, (VIP_IPV6.0, 8090), 18),
];
/// Which backends have IPv6 addresses.
const HAVE_IPV6: std::ops::RangeInclusive<u32> = 9..=16;
/// Where the rings of one slot begin: by its index, that of each backend, with who else is in it.
const RINGS_OF_ONE: u32 = 1000;
/// Slots that each takes, a part of which nobody uses.
const ROOM_OF_ONE: u32 = 4;
/// A backend without an interface.
const UNRESOLVED: u32 = 4;
/// A client.
pub const CLIENT: Socket = (IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), 40_000);
/// A client on IPv6.
pub const CLIENT_IPV6: Socket =
    (IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x5151, 0, 0, 0, 0, 7)), 40_000);
/// The address that full NAT sends from.
pub const NAT_SOURCE: IpAddr = v4(10);
/// The same for IPv6.
pub const NAT_SOURCE_IPV6: IpAddr = v6(0x10);
/// Ports that full NAT sends from.
pub const NAT_PORTS: std::ops::Range<u32> = 1024..9216;
/// Words that each backend has for its pool of source ports: enough for that range.
pub const POOL_ROOM: u32 = 300;
/// The interface that frames come in on.
pub const INGRESS: u32 = 1;
/// Another interface, that one of the backends is behind.
pub const OTHER_INTERFACE: u32 = 7;
/// Our hardware address on the first interface.
pub const OWN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x10];
/// Our hardware address on the other interface.
pub const OTHER_OWN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x20];

/// What SYNs to and from some backends say at most.
pub const CLAMPED: u16 = 1200;
/// Tags of a frame in a VLAN: EtherType and number.
pub const TAGS: [(u16, u16); 1] = [(0x8100, 100)];
/// Those of a frame in a VLAN within another (QinQ).
pub const DOUBLE_TAGS: [(u16, u16); 2] = [(0x88a8, 5), (0x8100, 100)];

/// The VLANs that tags name.
pub fn vlans(tags: &[(u16, u16)]) -> Vlans {
    let mut vlans = Vlans::NONE;
    for (place, (ether_type, number)) in vlans.0.iter_mut().zip(tags) {
        *place = Vlan::new(*number, *ether_type == 0x88a8);
    }
    vlans
}

/// What both tables start with.
#[derive(Clone, Debug)]
pub struct World {
    /// Settings.
    pub settings: Settings,
    /// Services. Each is there for TCP and for UDP.
    pub services: Vec<(Socket, Service)>,
    /// Backends from index 1 on.
    pub backends: Vec<Backend>,
    /// Slots of all rings.
    pub ring: Vec<u32>,
    /// Addresses that full NAT sends from.
    pub nat_sources: Vec<[NetworkU32; 4]>,
    /// Our hardware addresses, and how long datagrams from there may be.
    pub local_macs: Vec<(LocalMac, u32)>,
    /// What lists say of networks, by their numbers.
    pub access: Vec<(u32, IpNet, Access)>,
    /// Connections that the table of flows has room for.
    pub flows: u32,
    /// The same of half-open handshakes.
    pub embryonic: u32,
}

/// The client of the family of an address.
pub const fn client_of(address: IpAddr) -> Socket {
    if address.is_ipv4() { CLIENT } else { CLIENT_IPV6 }
}

/// A backend's address and port.
pub fn backend_address(index: u32) -> Socket {
    let service = OTHER_FORWARDINGS
        .iter()
        .find(|(forwarding, _, backend)| *backend == index && !forwarding.sees_replies());
    let port = service.map_or(8080, |(_, (_, port), _)| *port);
    let is_ipv6 = HAVE_IPV6.contains(&index);
    (if is_ipv6 { v6(0x200 + index as u16) } else { v4(100 + index as u8) }, port)
}

/// A backend's hardware address.
pub fn backend_mac(index: u32) -> [u8; 6] {
    [0x02, 0, 0, 0, 1, index as u8]
}

/// Index of the service on IPv6.
const SERVICE_IPV6: u32 = 4;
/// Index of the first of the services of [`OTHER_FORWARDINGS`].
const FIRST_OTHER_SERVICE: u32 = 5;

fn backend(index: u32) -> Backend {
    let (address, port) = backend_address(index);
    let other = index == 3;
    let others = &mut OTHER_FORWARDINGS.iter().zip(FIRST_OTHER_SERVICE..);
    let other_service = others.find(|((.., backend), _)| *backend == index);
    let next_hop = Hop {
        interface: if other { OTHER_INTERFACE } else { INGRESS },
        station: MacAddress::new(backend_mac(index)),
        own: MacAddress::new(if other { OTHER_OWN_MAC } else { OWN_MAC }),
        vlans: Vlans::NONE,
    };
    let mut backend = Backend {
        address: words(address),
        next_hop: if index == UNRESOLVED { Hop::default() } else { next_hop },
        nat_source: address.is_ipv6().into(),
        nat_sources: 1,
        port: NetworkU16::new(port),
        forwarding: other_service.map_or(Forwarding::FullNat, |((forwarding, ..), _)| *forwarding),
        service: match other_service {
            Some((_, service)) => service,
            None if BACKENDS_IPV6.contains(&index) => SERVICE_IPV6,
            None => 0,
        },
        family: if address.is_ipv6() { AddressFamily::Ipv6 } else { AddressFamily::Ipv4 },
        maximum_segment: 0,
        ports: index * POOL_ROOM,
        takes_new_flows: 1,
        remembers_clients: 0,
        fate: Fate::Keep,
        is_down: 0,
        weight: WEIGHT as u16,
        outer_source: words(if address.is_ipv6() { NAT_SOURCE_IPV6 } else { NAT_SOURCE }),
        ..Backend::default()
    };
    backend.set_maximum_datagram(1500);
    backend
}

impl World {
    /// The words of all pools of source ports, every port free.
    pub fn port_words(&self) -> Vec<u64> {
        let ports =
            |backend: &Backend| self.settings.nat_port_count * u32::from(backend.nat_sources);
        let ends = self.backends.iter().map(|backend| backend.ports + pool_words(ports(backend)));
        let mut words = vec![0; ends.max().unwrap_or(1) as usize];
        for backend in &self.backends {
            let ports = ports(backend);
            let start = generation_start(backend.ports, ports, 0) as usize;
            for port in 0..ports as usize {
                words[start + port / 64] |= 1 << (port % 64);
            }
        }
        words
    }

    /// The services on IPv4, as they stand in the map.
    pub fn services_ipv4(&self) -> Vec<(ServiceKey<Ipv4Address>, Service)> {
        self.keyed(|address| match address {
            IpAddr::V4(address) => Some(address.into()),
            IpAddr::V6(_) => None,
        })
    }

    /// The services on IPv6, as they stand in the map.
    pub fn services_ipv6(&self) -> Vec<(ServiceKey<Ipv6Address>, Service)> {
        self.keyed(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address.into()),
        })
    }

    /// Three backends in VLANs, or one within another, and two whose SYNs are clamped, one of them in a
    /// VLAN as well; on the first interface, both sorts of VLAN are ours.
    #[must_use]
    pub fn with_vlans(mut self) -> Self {
        let (untagged, longest) = self.local_macs[0];
        for tags in [&TAGS[..], &DOUBLE_TAGS] {
            self.local_macs.push((LocalMac { vlans: vlans(tags), ..untagged }, longest));
        }
        for (index, tags) in [(2, &TAGS[..]), (8, &TAGS), (12, &DOUBLE_TAGS), (13, &TAGS)] {
            self.backends[index - 1].next_hop.vlans = vlans(tags);
        }
        for index in [2, 6, 7, 14] {
            self.backends[index - 1].maximum_segment = CLAMPED;
        }
        self
    }

    /// A service with a list of who may connect, one with affinity, and a limit of SYNs a second.
    #[must_use]
    pub fn with_limits(mut self) -> Self {
        for (text, access) in [("198.51.100.0/25", Access::Denied), ("0.0.0.0/0", Access::Allowed)]
        {
            self.access.push((1, text.parse().expect("a network"), access));
        }
        for (vip, service) in &mut self.services {
            match *vip {
                NAT_VIP => service.access = 1,
                VIP_IPV6 => service.affinity = 60,
                _ => {}
            }
        }
        for index in BACKENDS_IPV6 {
            self.backends[index as usize - 1].remembers_clients = 1;
        }
        // Ten at once.
        self.settings.syn_interval = 100_000_000;
        self
    }

    /// Another backend beside each of [`OTHER_FORWARDINGS`], in every other slot of its service's ring.
    #[must_use]
    pub fn with_twins(mut self) -> Self {
        /// Slots of each ring.
        const SLOTS: u32 = 251;
        for (_, vip, index) in OTHER_FORWARDINGS {
            let twin = self.backends.len() as u32 + 1;
            let place = |(address, _)| match address {
                IpAddr::V4(_) => v4(200 + index as u8),
                IpAddr::V6(_) => v6(0x300 + index as u16),
            };
            let first = self.backends[index as usize - 1];
            let mut other = first;
            other.address = words(place(backend_address(index)));
            other.next_hop.station = MacAddress::new(backend_mac(twin));
            other.ports = twin * POOL_ROOM;
            self.backends.push(other);
            for (_, service) in self.services.iter_mut().filter(|(address, _)| *address == vip) {
                service.ring = Ring::new(self.ring.len() as u32, SLOTS, 1);
            }
            self.ring.extend((0..SLOTS).map(|slot| if slot % 2 == 0 { index } else { twin }));
            self.ring.extend([2, index, twin]);
        }
        self
    }

    /// Whatever names a backend in the rings, or behind them.
    pub fn slots_mut(&mut self) -> impl Iterator<Item = &mut u32> {
        let ring = |(_, service): &(Socket, Service)| service.ring.members() as usize;
        let counts: HashSet<usize> = self.services.iter().map(ring).collect();
        let slots = self.ring.iter_mut().enumerate();
        slots.filter(move |(place, _)| !counts.contains(place)).map(|(_, slot)| slot)
    }

    fn keyed<A>(&self, family: impl Fn(IpAddr) -> Option<A>) -> Vec<(ServiceKey<A>, Service)> {
        let mut services = Vec::new();
        for ((address, port), service) in &self.services {
            for protocol in [6, 17] {
                let Some(address) = family(*address) else { continue };
                let key = ServiceKey { address, port: NetworkU16::new(*port), protocol };
                services.push((key, *service));
            }
        }
        services
    }
}

impl Default for World {
    /// Three backends, the third behind the other interface, a fourth that isn't resolved, those of
    /// [`OTHER_FORWARDINGS`], and two on IPv6.
    fn default() -> Self {
        // The ring of one slot of a backend.
        let ring_of = |index: u32| Ring::new(RINGS_OF_ONE + index * ROOM_OF_ONE, 1, 1);
        let mut rings = vec![
            (VIP, Ring::new(32, 251, 1)),
            (EMPTY_VIP, Ring::new(0, 0, 1)),
            (NAT_VIP, Ring::new(32, 251, 1)),
            (UNRESOLVED_VIP, ring_of(UNRESOLVED)),
            (VIP_IPV6, Ring::new(512, 251, 1)),
        ];
        assert_eq!(rings[SERVICE_IPV6 as usize].0, VIP_IPV6);
        assert_eq!(rings.len(), FIRST_OTHER_SERVICE as usize);
        rings.extend(OTHER_FORWARDINGS.map(|(_, vip, index)| (vip, ring_of(index))));
        rings.push((SILENT_VIP, Ring::new(0, 0, 1)));
        rings.extend([TURN_VIP, LEAST_VIP, BOUNDED_VIP].map(|vip| (vip, Ring::new(32, 251, 1))));
        let service = |(index, (vip, ring))| {
            let options = match vip {
                SILENT_VIP => service_options::SILENT,
                TURN_VIP => service_options::IN_TURN,
                LEAST_VIP => service_options::LEAST,
                _ => 0,
            };
            let most_load = if vip == BOUNDED_VIP { 100 } else { 0 };
            let weights = WEIGHT * BACKENDS.len() as u32;
            (vip, Service { ring, index, options, most_load, weights, ..Service::default() })
        };
        Self {
            settings: Settings {
                abi_version: VERSION,
                hash_seed: 0,
                nat_port_first: NAT_PORTS.start,
                nat_port_count: NAT_PORTS.len() as u32,
                maximum_datagram: 1500,
                redirect_always: 0,
                replies_anywhere: 1,
                controller: 0,
                syn_interval: 0,
                namespace: 0,
                secret: 1,
                trace_mask: 0xfff,
                nat_trace_mask: 0xfff,
                // By that clock, no time passes: it isn't the same for the kernel and elsewhere.
                beat_shift: 63,
                reserved: 0,
            },
            services: (0..).zip(rings).map(service).collect(),
            backends: (1..=18).map(backend).collect(),
            ring: (0..RINGS_OF_ONE + 19 * ROOM_OF_ONE)
                .map(|slot| match slot {
                    32..283 => BACKENDS[slot as usize % 3],
                    283 => BACKENDS.len() as u32,
                    284..287 => BACKENDS[slot as usize - 284],
                    512..763 => BACKENDS_IPV6[slot as usize % 2],
                    763 => BACKENDS_IPV6.len() as u32,
                    764..766 => BACKENDS_IPV6[slot as usize - 764],
                    RINGS_OF_ONE.. if slot % ROOM_OF_ONE == 1 => 1,
                    RINGS_OF_ONE.. => (slot - RINGS_OF_ONE) / ROOM_OF_ONE,
                    _ => 0,
                })
                .collect(),
            nat_sources: [NAT_SOURCE, NAT_SOURCE_IPV6].map(words).to_vec(),
            local_macs: [(INGRESS, OWN_MAC), (OTHER_INTERFACE, OTHER_OWN_MAC)]
                .map(|(interface, address)| {
                    let address = MacAddress::new(address);
                    let vlans = Vlans::NONE;
                    (LocalMac { interface, address, reserved: 0, vlans }, 1500)
                })
                .to_vec(),
            access: Vec::new(),
            flows: 65_536,
            embryonic: 262_144,
        }
    }
}
