//! What is known of destination ports in a [`World`].

use lb_common::abi::{PORT_KIND_WORDS, PortKind};

use crate::world::{OTHER_FORWARDINGS, World};

impl World {
    /// Ports where services are, or replies may come in.
    pub fn own_ports(&self) -> impl Iterator<Item = u16> {
        let (first, count) = (self.settings.nat_port_first, self.settings.nat_port_count);
        let is_own = move |port: u16| {
            self.settings.replies_anywhere != 0
                || (first..first + count).contains(&port.into())
                || self.services.iter().any(|((_, own), _)| *own == port)
        };
        (0..=u16::MAX).filter(move |port| is_own(*port))
    }

    /// Ports of services by direct return.
    pub fn direct_ports(&self) -> impl Iterator<Item = u16> {
        let direct =
            OTHER_FORWARDINGS.into_iter().filter(|(forwarding, ..)| !forwarding.sees_replies());
        direct.map(|(_, (_, port), _)| port)
    }

    /// What is known of all ports, as it stands in the map.
    pub fn port_kinds(&self) -> Vec<u64> {
        let foreign = |all, port| all | PortKind::FOREIGN.bits(port);
        let mut words = vec![(0..u16::MAX).fold(0, foreign); PORT_KIND_WORDS];
        for port in self.own_ports() {
            words[PortKind::word(port)] &= !PortKind::FOREIGN.bits(port);
        }
        for port in self.direct_ports() {
            words[PortKind::word(port)] |= PortKind::DIRECT.bits(port);
        }
        words
    }
}
