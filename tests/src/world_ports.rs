//! Which ports a world's packets are sent to.

use bytemuck::Zeroable as _;
use lb_common::abi::{PortBits, PortSet, Settings};

use crate::world::World;

impl World {
    /// The ports that are in a set.
    pub fn ports(&self, set: PortSet) -> PortBits {
        match set {
            PortSet::Direct => self.direct_ports(),
            PortSet::Ours => self.our_ports(),
        }
    }

    fn our_ports(&self) -> PortBits {
        let mut ports = PortBits::zeroed();
        let Settings { nat_port_first: first, nat_port_count: count, .. } = self.settings;
        self.services.iter().for_each(|((_, port), _)| ports.add(*port));
        let ours = |port: &u16| {
            self.settings.replies_anywhere != 0
                || (first..first + count).contains(&u32::from(*port))
        };
        (0..=u16::MAX).filter(ours).for_each(|port| ports.add(port));
        ports
    }

    /// Ports of services by direct return.
    fn direct_ports(&self) -> PortBits {
        let mut ports = PortBits::zeroed();
        for ((_, port), service) in &self.services {
            let led = self.ring.get(service.ring.offset() as usize);
            let backend =
                led.and_then(|index| self.backends.get((*index as usize).wrapping_sub(1)));
            if backend.is_some_and(|backend| !backend.forwarding.sees_replies()) {
                ports.add(*port);
            }
        }
        ports
    }
}
