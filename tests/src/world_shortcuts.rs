//! What a world's packets go by that don't look at the tables of services and flows.

use std::collections::BTreeMap;

use bytemuck::Zeroable as _;
use lb_common::abi::{PortBits, PortSet, Settings, Station};

use crate::world::World;

impl World {
    /// Our hardware addresses in their places: of two that belong to one, the first.
    pub fn stations(&self) -> BTreeMap<u32, Station> {
        let mut stations = BTreeMap::new();
        for (mac, maximum_datagram) in &self.local_macs {
            let (mac, maximum_datagram) = (*mac, *maximum_datagram);
            let station = Station { mac, maximum_datagram, ..Station::default() };
            stations.entry(mac.place()).or_insert(station);
        }
        stations
    }

    /// The sets that ports are in.
    pub fn ports(&self) -> PortBits {
        let mut ports = PortBits::zeroed();
        let Settings { nat_port_first: first, nat_port_count: count, .. } = self.settings;
        let is_ours = |port: &u16| {
            self.settings.replies_anywhere != 0
                || (first..first + count).contains(&u32::from(*port))
        };
        (0..=u16::MAX).filter(is_ours).for_each(|port| ports.add(PortSet::Ours, port));
        for ((_, port), service) in &self.services {
            ports.add(PortSet::Ours, *port);
            let led = self.ring.get(service.ring.offset() as usize);
            let backend =
                led.and_then(|index| self.backends.get((*index as usize).wrapping_sub(1)));
            if let Some(backend) = backend {
                let is_nat = backend.forwarding.sees_replies();
                ports.add(if is_nat { PortSet::Nat } else { PortSet::Direct }, *port);
            }
        }
        ports
    }
}
