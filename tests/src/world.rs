//! What the packet logic is set up with in packet tests.

use std::net::Ipv4Addr;

use lb_common::{
    abi::{Backend, Forwarding, Link, LocalMac, Ring, Service, ServiceKey, Settings, VERSION},
    wire::{Ipv4Address, MacAddress, NetworkU16},
};

/// The service's address and port.
pub const VIP: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 77, 0, 100), 8080);
/// A service without backends.
pub const EMPTY_VIP: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 77, 0, 100), 8081);
/// A service on the very address, and a port of the range, that full NAT sends from.
pub const NAT_VIP: (Ipv4Addr, u16) = (NAT_SOURCE, 8082);
/// A service whose backend isn't resolved yet.
pub const UNRESOLVED_VIP: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 77, 0, 100), 8083);
/// Services of the other forwardings, each with the backend of the number beside it. The last two
/// share one.
pub const OTHER_FORWARDINGS: [(Forwarding, (Ipv4Addr, u16), u32); 5] = [
    (Forwarding::Nat, (VIP.0, 8084), 5),
    (Forwarding::Dsr, (VIP.0, 8085), 6),
    (Forwarding::Ipip, (VIP.0, 8086), 7),
    (Forwarding::Gue, (VIP.0, 8087), 8),
    (Forwarding::Nat, (VIP.0, 8088), 5),
];
/// A client.
pub const CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 7), 40_000);
/// The address that full NAT sends from.
pub const NAT_SOURCE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
/// Ports that full NAT sends from.
pub const NAT_PORTS: std::ops::Range<u32> = 1024..9216;
/// The interface that frames come in on.
pub const INGRESS: u32 = 1;
/// Another interface, that one of the backends is behind.
pub const OTHER_INTERFACE: u32 = 7;
/// Our hardware address on the first interface.
pub const OWN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x10];
/// Our hardware address on the other interface.
pub const OTHER_OWN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x20];

/// What both tables start with.
#[derive(Clone, Debug)]
pub struct World {
    /// Settings.
    pub settings: Settings,
    /// Services.
    pub services: Vec<(ServiceKey<Ipv4Address>, Service)>,
    /// Backends from index 1 on.
    pub backends: Vec<Backend>,
    /// Slots of all rings.
    pub ring: Vec<u32>,
    /// Addresses that full NAT sends from.
    pub nat_sources: Vec<Ipv4Address>,
    /// Our hardware addresses.
    pub local_macs: Vec<LocalMac>,
    /// Connections that the table of flows has room for.
    pub flows: u32,
}

/// A backend's address and port.
pub fn backend_address(index: u32) -> (Ipv4Addr, u16) {
    let service = OTHER_FORWARDINGS
        .iter()
        .find(|(forwarding, _, backend)| *backend == index && !forwarding.sees_replies());
    let port = service.map_or(8080, |(_, (_, port), _)| *port);
    (Ipv4Addr::new(10, 77, 0, 100 + index as u8), port)
}

/// A backend's hardware address.
pub fn backend_mac(index: u32) -> [u8; 6] {
    [0x02, 0, 0, 0, 1, index as u8]
}

impl Default for World {
    /// Three backends, the third behind the other interface, a fourth that isn't resolved, and
    /// those of [`OTHER_FORWARDINGS`].
    fn default() -> Self {
        let key = |(address, port): (Ipv4Addr, u16)| ServiceKey {
            address: address.into(),
            port: NetworkU16::new(port),
            protocol: 6,
        };
        let service = |index, ring| Service { ring, index, reserved: 0 };
        let backend = |index: u32| {
            let (address, port) = backend_address(index);
            let other = index == 3;
            Backend {
                address: Ipv4Address::from(address).words(),
                link: Link {
                    interface: if other { OTHER_INTERFACE } else { INGRESS },
                    station: MacAddress::new(backend_mac(index)),
                    own: MacAddress::new(if other { OTHER_OWN_MAC } else { OWN_MAC }),
                },
                nat_source: 0,
                nat_sources: 1,
                port: NetworkU16::new(port),
                maximum_datagram: 1500,
                forwarding: Forwarding::FullNat,
                reserved: [0; 3],
            }
        };
        let unresolved = Backend { link: Link::default(), ..backend(4) };
        let mut backends = vec![backend(1), backend(2), backend(3), unresolved];
        let mut services = vec![
            (key(VIP), service(0, Ring::new(32, 251, 1))),
            (key(EMPTY_VIP), service(1, Ring::new(0, 0, 1))),
            (key(NAT_VIP), service(2, Ring::new(32, 251, 1))),
            (key(UNRESOLVED_VIP), service(3, Ring::new(300, 1, 1))),
        ];
        for (forwarding, vip, index) in OTHER_FORWARDINGS {
            if index as usize > backends.len() {
                backends.push(Backend { forwarding, ..backend(index) });
            }
            services.push((key(vip), service(services.len() as u32, Ring::new(300 + index, 1, 1))));
        }
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
            },
            services,
            backends,
            ring: (0..320)
                .map(|slot| match slot {
                    32..283 => 1 + slot % 3,
                    300 => 4,
                    305..309 => slot - 300,
                    _ => 0,
                })
                .collect(),
            nat_sources: vec![NAT_SOURCE.into()],
            local_macs: [(INGRESS, OWN_MAC), (OTHER_INTERFACE, OTHER_OWN_MAC)]
                .map(|(interface, address)| LocalMac {
                    interface,
                    address: MacAddress::new(address),
                    reserved: 0,
                })
                .to_vec(),
            flows: 65_536,
        }
    }
}
