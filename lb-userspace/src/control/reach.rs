//! What of the state depends on the network around this host.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    abi::{
        Balance, CheckKind, CheckResult, Forwarding, Hop, Lifecycle, LocalMac, Service,
        ServiceInfo, Text, Tick, service_options,
    },
    wire::{Vlans, words},
};

use super::state::{Bind, State};
use crate::{
    config::{self, AllDown, Config},
    netlink::{Network, NextHop},
};

/// Why a backend is down that isn't checked.
const OWN_ADDRESS: &str = "not reachable: the address is this host's own";

/// Bits of [`service_options`].
fn options(service: &config::Service) -> u32 {
    let balance = match service.balance {
        Balance::Source => service_options::SOURCE,
        Balance::RoundRobin => service_options::IN_TURN,
        Balance::LeastConn => service_options::LEAST,
        _ => 0,
    };
    let on_all_down = match service.on_all_down {
        AllDown::Refuse | AllDown::Keep => 0,
        AllDown::Drop => service_options::SILENT,
    };
    balance | on_all_down
}

impl State {
    /// Takes in what the network looks like: how backends are reached, and which hardware
    /// addresses and interfaces are ours.
    ///
    /// A backend that can't be resolved any longer keeps what was known of it: its flows may well
    /// go on, and its checks will tell if it is gone.
    pub fn apply_network(&mut self, config: &Config, network: &Network, attached: &[u32]) {
        self.bind(config, network, attached);
        let bound = self.bound_addresses();
        let indices: Vec<u32> = self.backends.keys().copied().collect();
        for index in indices {
            let Some(state) = self.backends.get(&index) else { continue };
            let address = state.address().ip();
            self.shut_out(index, network.is_own(address));
            let Some(Ok(hop)) = network.next_hops.get(&address) else { continue };
            let Some(link) = network.links.get(&hop.interface) else { continue };
            let mtu = u16::try_from(link.mtu).unwrap_or(u16::MAX);
            let path_mtu = self.path_mtus.get(&address).copied();
            let mtu = path_mtu.map_or(mtu, |path_mtu| mtu.min(path_mtu));
            let Some(state) = self.backends.get(&index) else { continue };
            let out_of_reach = state.backend.forwarding == Forwarding::Dsr && hop.router.is_some();
            let next_hop = if out_of_reach {
                Hop::default()
            } else {
                let unknown = (hop.interface, Vlans::NONE);
                let (interface, vlans) = network.base(hop.interface, attached).unwrap_or(unknown);
                Hop { interface, station: hop.station, own: link.mac, vlans }
            };
            let of_family = |address: &&IpAddr| address.is_ipv4() == hop.source.is_ipv4();
            let mut sources: Vec<IpAddr> =
                config.nat_addresses.iter().filter(of_family).copied().collect();
            if sources.is_empty() {
                sources.push(self.own_source(network, hop, &bound));
            }
            let nat_source = self.place_sources(&sources);
            if let Some(state) = self.backends.get_mut(&index) {
                state.backend.next_hop = next_hop;
                state.backend.set_maximum_datagram(mtu);
                state.backend.outer_source = words(sources[0]);
                if let Some(nat_source) = nat_source {
                    state.backend.nat_source = nat_source;
                    state.backend.nat_sources = sources.len() as u16;
                }
            }
        }
        self.egress = attached.iter().copied().collect();
        let leaving = self.backends.values().map(|state| state.backend.next_hop.interface);
        // One that has gone comes back under another number.
        self.egress.extend(leaving.filter(|interface| network.links.contains_key(interface)));
        self.egress.extend(self.check_interface);
        self.local_macs.clear();
        for (index, link) in &network.links {
            if let Some((interface, vlans)) = network.base(*index, attached)
                && !link.mac.is_unknown()
            {
                let address = link.mac;
                let mac = LocalMac { interface, address, reserved: 0, vlans };
                self.local_macs.insert(mac, link.mtu.min(u16::MAX.into()));
            }
        }
        let links = || attached.iter().filter_map(|index| network.links.get(index));
        self.settings.redirect_always = links().any(|link| link.is_veth).into();
        let mtu = links().map(|link| link.mtu);
        self.settings.maximum_datagram = mtu.max().unwrap_or(1500);
    }

    /// Takes down a backend whose address is this host's own, since nothing is forwarded there; it isn't checked. One that
    /// never is, is up again once it has another address.
    fn shut_out(&mut self, index: u32, is_own: bool) {
        let Some(state) = self.backends.get_mut(&index) else { return };
        let info = &mut state.info;
        let was_out = info.detail == Text::new(OWN_ADDRESS);
        if is_own {
            info.result = CheckResult::Down;
            info.detail = Text::new(OWN_ADDRESS);
        } else if was_out && info.check == CheckKind::None {
            info.result = CheckResult::Up;
            info.detail = Text::new("");
        }
    }

    /// Demands that backends whose hardware address is all that changes are on our own network, as far as it is
    /// known where they are.
    ///
    /// # Errors
    ///
    /// One isn't.
    pub(super) fn demand_direct_reach(&self, network: &Network) -> Result<(), String> {
        let hop = |address: &IpAddr| network.next_hops.get(address)?.as_ref().ok();
        for state in self.backends.values() {
            let (address, forwarding) = (state.address().ip(), state.backend.forwarding);
            if forwarding == Forwarding::Dsr
                && let Some(router) = hop(&address).and_then(|hop| hop.router)
            {
                return Err(format!(
                    "backend {address} is behind the router {router}, and forwarding \"dsr\" \
                     reaches only its own network: use \"ipip\" or \"gue\""
                ));
            }
        }
        Ok(())
    }

    /// The address to send from on the way to a backend: the one that the kernel picks, unless that
    /// is a service's and the interface has another. IPv6 likes a VIP that resembles the backend's
    /// address (RFC 6724, rule 8), but a VIP may move away.
    pub(super) fn own_source(
        &self,
        network: &Network,
        hop: &NextHop,
        bound: &HashSet<IpAddr>,
    ) -> IpAddr {
        if !bound.contains(&hop.source) {
            return hop.source;
        }
        let mut others = self.unbound(network, hop.source.is_ipv4(), bound);
        let other = others.find(|(interface, _)| *interface == hop.interface);
        other.map_or(hop.source, |(_, ip)| ip)
    }

    /// The addresses that services are bound to.
    pub(super) fn bound_addresses(&self) -> HashSet<IpAddr> {
        self.binds.keys().map(|bind| bind.address.ip()).collect()
    }

    /// This host's addresses of a family that aren't a service's, with their interfaces.
    pub(super) fn unbound(
        &self,
        network: &Network,
        is_ipv4: bool,
        bound: &HashSet<IpAddr>,
    ) -> impl Iterator<Item = (u32, IpAddr)> {
        network.addresses.iter().copied().filter(move |(_, ip)| {
            ip.is_ipv4() == is_ipv4 && config::is_reachable(*ip) && !bound.contains(ip)
        })
    }

    /// Binds every service to what it is configured for, and those that follow the interfaces'
    /// addresses to the ones that are there now. Where a service names an address, it has that for
    /// itself.
    fn bind(&mut self, config: &Config, network: &Network, attached: &[u32]) {
        let is_ours = |interface: u32| network.base(interface, attached).is_some();
        let ours = network.addresses.iter().filter(|(interface, _)| is_ours(*interface));
        let addresses: BTreeSet<IpAddr> = ours
            .map(|(_, address)| *address)
            .filter(|address| config::is_reachable(*address))
            .collect();
        let mut binds = BTreeMap::new();
        let mut following = BTreeMap::new();
        let active = self.services.iter().filter(|(_, info)| info.lifecycle == Lifecycle::Active);
        let by_name: HashMap<&str, (u32, &ServiceInfo)> =
            active.map(|(index, info)| (info.name.as_str(), (*index, info))).collect();
        for service in &config.services {
            let Some((index, info)) = by_name.get(service.name.as_str()).copied() else { continue };
            let bound = Service {
                index,
                options: options(service),
                most_load: service.most_load.unwrap_or(0),
                access: info.access,
                affinity: ticks(info.affinity),
                ..Service::default()
            };
            let protocol = service.protocol;
            for bind in &service.binds {
                match bind {
                    config::Bind::Address(address) => {
                        binds.insert(Bind { address: *address, protocol }, bound);
                    }
                    config::Bind::Any(port) => {
                        for ip in addresses.iter().filter(|ip| service.can_serve(**ip)) {
                            let address = SocketAddr::new(*ip, *port);
                            following.insert(Bind { address, protocol }, bound);
                        }
                    }
                }
            }
        }
        for (bind, service) in following {
            binds.entry(bind).or_insert(service);
        }
        self.binds = binds;
    }

    /// The index from which on `sources` stand in the table, adding them if need be, where there is room or
    /// where those stand that no backend is reached from any longer; `None` where there is none.
    fn place_sources(&mut self, sources: &[IpAddr]) -> Option<u32> {
        let count = sources.len();
        let there = self.nat_sources.windows(count).position(|part| part == sources);
        let index = match there {
            Some(index) => index,
            None if self.nat_sources.len() + count <= super::NAT_SOURCES as usize => {
                self.nat_sources.extend_from_slice(sources);
                self.nat_sources.len() - count
            }
            None => {
                let mut in_use = vec![false; self.nat_sources.len()];
                for backend in self.backends.values().map(|state| &state.backend) {
                    let first = backend.nat_source as usize;
                    let named = in_use.iter_mut().skip(first).take(backend.nat_sources as usize);
                    named.for_each(|in_use| *in_use = true);
                }
                let index = in_use.windows(count).position(|part| !part.contains(&true))?;
                self.nat_sources[index..index + count].copy_from_slice(sources);
                index
            }
        };
        u32::try_from(index).ok()
    }
}

/// So many seconds in whole ticks, not less.
fn ticks(seconds: u32) -> u32 {
    let ticks = (u64::from(seconds) * 1_000_000_000).div_ceil(Tick::NANOSECONDS);
    u32::try_from(ticks).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::wire::{MacAddress, Vlan};

    use crate::{control::configure::Room, netlink};

    const TEXT: &str = r#"
[[service]]
name = "fixed"
bind = ["[2001:db8::100]:80"]
[[service.backend]]
name = "a"
address = "[2001:db8::101]:80"

[[service]]
name = "everywhere"
bind = ["*:80"]
[[service.backend]]
name = "b"
address = "[2001:db8::102]:80"
"#;

    const ROOM: Room = Room { services: 8, binds: 8, backends: 8, networks: 8 };

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn link(below: Option<(u32, Vlan)>) -> netlink::Link {
        netlink::Link {
            name: String::new(),
            mac: MacAddress::new([2, 0, 0, 0, 0, 2]),
            mtu: 1500,
            up: true,
            below: below.map(|(interface, vlan)| netlink::Below { interface, vlan }),
            is_veth: false,
            xdp: None,
        }
    }

    #[test]
    fn what_is_on_top_of_an_interface_is_reached_through_it() {
        let config = Config::parse("lb.toml".as_ref(), TEXT).expect("valid");
        let mut state = State::default().configured(&config, ROOM).expect("room");
        let mut network = Network::default();
        let (outer, inner) = (Vlan::new(5, true), Vlan::new(100, false));
        network.links.insert(1, link(None));
        network.links.insert(2, link(Some((1, outer))));
        network.links.insert(3, link(Some((2, inner))));
        // A macvlan on that, a third VLAN, and one on an interface without the program.
        network.links.insert(4, link(Some((3, Vlan::NONE))));
        network.links.insert(5, link(Some((3, inner))));
        network.links.insert(6, link(None));
        network.links.insert(7, link(Some((6, inner))));
        for interface in 1..=7 {
            let address = format!("2001:db8:{interface}::1");
            network.addresses.insert((interface, address.parse().expect("an address")));
        }
        let station = MacAddress::new([2, 0, 0, 0, 0, 1]);
        let source = address("2001:db8::1");
        for (text, interface) in [("2001:db8::101", 4), ("2001:db8::102", 7)] {
            let hop = NextHop { interface, station, source, router: None };
            network.next_hops.insert(address(text), Ok(hop));
        }
        state.apply_network(&config, &network, &[1]);

        let ours: Vec<Vlans> = state.local_macs.keys().map(|mac| mac.vlans).collect();
        let [none, one, two] = [[Vlan::NONE; 2], [outer, Vlan::NONE], [outer, inner]].map(Vlans);
        assert_eq!(BTreeSet::from_iter(ours), BTreeSet::from([none, one, two]));
        let links: Vec<(u32, Vlans)> = (state.backends.values())
            .map(|state| (state.backend.next_hop.interface, state.backend.next_hop.vlans))
            .collect();
        assert_eq!(links, [(1, two), (7, none)]);
        let bound: Vec<IpAddr> = state.binds.keys().map(|bind| bind.address.ip()).collect();
        let interfaces = ["1", "2", "3", "4"].map(|name| address(&format!("2001:db8:{name}::1")));
        assert_eq!(bound[1..], interfaces);
    }

    #[test]
    fn services_follow_addresses_and_a_vip_is_no_source() {
        let config = Config::parse("lb.toml".as_ref(), TEXT).expect("valid");
        let mut state = State::default().configured(&config, ROOM).expect("room");
        let mut network = Network::default();
        for text in ["2001:db8::10", "2001:db8::100", "fe80::1", "::1", "192.0.2.1"] {
            network.addresses.insert((1, address(text)));
        }
        network.addresses.insert((2, address("2001:db8:2::1")));
        let hop = NextHop {
            interface: 1,
            station: MacAddress::new([2, 0, 0, 0, 0, 1]),
            source: address("2001:db8::100"),
            router: None,
        };
        for text in ["2001:db8::101", "2001:db8::102"] {
            network.next_hops.insert(address(text), Ok(hop));
        }
        network.links.insert(1, link(None));
        state.apply_network(&config, &network, &[1]);
        let binds: Vec<(String, u32)> = state
            .binds
            .iter()
            .map(|(bind, service)| (bind.address.to_string(), service.index))
            .collect();
        // What a service names is its own; what it can't serve, none of its backends having such an
        // address, isn't bound.
        assert_eq!(
            binds,
            [("[2001:db8::10]:80".to_owned(), 1), ("[2001:db8::100]:80".to_owned(), 0)]
        );
        assert_eq!(state.nat_sources, [address("2001:db8::100")], "every address is bound");

        network.addresses.insert((1, address("2001:db8::20")));
        let text = TEXT.replace("\"*:80\"", "\"[2001:db8::10]:80\"");
        let config = Config::parse("lb.toml".as_ref(), &text).expect("valid");
        state.apply_network(&config, &network, &[1]);
        let source = state.backends[&1].backend.nat_source as usize;
        assert_eq!(state.nat_sources[source], address("2001:db8::20"));
    }
}
