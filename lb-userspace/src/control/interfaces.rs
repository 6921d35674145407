//! The interfaces that the program is attached to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use aya::programs::links::PinnedLink;

use crate::{
    api::{ABSENT, InterfaceStatus, NO_LINK},
    config::{Bind, Config},
    dataplane::{DataplaneError, Loaded, Pins, attach, detach},
    netlink::{self, Network},
};

/// Which interfaces the configuration means, by index and name, as far as there are such, and an
/// error that says what is missing. Where it names none, it's `chosen`, or else the one of the
/// default route.
pub(super) fn present(
    config: &Config,
    network: &Network,
    chosen: Option<u32>,
) -> (Vec<(u32, String)>, Result<(), String>) {
    let mut present = Vec::new();
    let mut all = Ok(());
    for name in &config.interfaces {
        match network.index(name) {
            Some(index) => present.push((index, name.clone())),
            None => {
                let names: Vec<&str> =
                    network.links.values().map(|link| link.name.as_str()).collect();
                all = Err(format!("no such interface: {name}; there are {}", names.join(", ")));
            }
        }
    }
    if config.interfaces.is_empty() {
        let default = chosen.or(network.default_interface);
        match default.and_then(|index| Some((index, network.links.get(&index)?))) {
            Some((index, link)) => present.push((index, link.name.clone())),
            None => {
                all = Err("no interface is named and there is no default route to choose one by: \
                           set interfaces = [\"eth0\"], or use --interface"
                    .to_owned());
            }
        }
    }
    (present, all)
}

/// The interfaces that the program is attached to.
#[derive(Debug, Default)]
pub(super) struct Interfaces {
    attached: BTreeMap<u32, InterfaceStatus>,
    /// The links that this process made.
    links: BTreeMap<u32, PinnedLink>,
    /// Those that the program seemed not to be attached to.
    suspects: BTreeSet<u32>,
    /// Backends that are reached by other interfaces, as far as it was told.
    detours: BTreeSet<IpAddr>,
}

impl Interfaces {
    /// Attaches the program to every wanted interface that it isn't attached to yet, and detaches
    /// it from all others.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub(super) fn attach(
        &mut self,
        loaded: &mut Loaded,
        pins: &Pins,
        config: &Config,
        network: &Network,
        wanted: &[(u32, String)],
    ) -> Result<(), DataplaneError> {
        for (index, name) in wanted {
            if self.attached.contains_key(index) {
                continue;
            }
            let current = network.links.get(index).and_then(|link| link.xdp);
            let current = current.map(|program| program.mode);
            let attached =
                attach(loaded.program()?, pins, (*index, name), config.xdp_mode, current)?;
            if let Some(link) = attached.link {
                self.links.insert(*index, link);
            }
            let mode = attached.mode.name();
            tracing::info!(interface = name, mode, taken_over = attached.adopted, "attached");
            if let Some(cause) = &attached.fallback_cause {
                tracing::warn!(interface = name, cause, "generic mode: slower than native");
            }
            if network.links.get(index).is_some_and(|link| link.is_veth) {
                tracing::info!(
                    interface = name,
                    "a veth: the ends of other cables must have `ethtool -K IF tx off tso off gso \
                     off gro on`, or they drop what is forwarded to them"
                );
            }
            let is_on_it =
                |below: netlink::Below| below.interface == *index && !below.vlan.is_none();
            let has_vlans = network.links.values().any(|link| link.below.is_some_and(is_on_it));
            for trouble in netlink::trouble(name, attached.mode, has_vlans) {
                tracing::warn!("{trouble}");
            }
            self.attached.insert(
                *index,
                InterfaceStatus {
                    name: name.clone(),
                    mode: mode.to_owned(),
                    cause: attached.fallback_cause,
                },
            );
        }
        let keep: Vec<u32> = wanted.iter().map(|(index, _)| *index).collect();
        self.links.retain(|index, _| keep.contains(index));
        for interface in detach(pins, |index| !keep.contains(&index))? {
            tracing::info!(interface, "detached");
        }
        self.attached.retain(|index, _| keep.contains(index));
        Ok(())
    }

    /// Forgets, with an event, those that the program isn't attached to in this picture of the network, nor was in the
    /// one of the call before. Returns whether there are any.
    pub(super) fn forget_detached(&mut self, network: &Network, program: u32) -> bool {
        let is_lost = |index: &u32| {
            let link = network.links.get(index);
            // 0: the kernel doesn't say which.
            let is_other = |id: u32| id != program && id != 0 && program != 0;
            link.is_some_and(|link| link.xdp.is_none_or(|xdp| is_other(xdp.id)))
        };
        let lost: BTreeSet<u32> = self.attached.keys().copied().filter(is_lost).collect();
        let (again, new) = lost.into_iter().partition(|index| self.suspects.contains(index));
        self.suspects = new;
        let again: BTreeSet<u32> = again;
        for index in &again {
            if let Some(status) = self.attached.remove(index) {
                tracing::error!(
                    interface = status.name,
                    "somebody detached the program: nothing was forwarded from here; it is attached again"
                );
            }
            self.links.remove(index);
        }
        !again.is_empty()
    }

    /// Links without a pin, in words.
    pub(super) fn unpinned(&self, pins: &Pins) -> Vec<String> {
        let pinned: BTreeSet<u32> = pins.links().into_iter().map(|pin| pin.index).collect();
        let unpinned = self.attached.iter().filter(|(index, _)| !pinned.contains(index));
        unpinned.map(|(_, status)| format!("the link to {}", status.name)).collect()
    }

    /// The first that there still is.
    pub(super) fn first(&self, network: &Network) -> Option<u32> {
        self.attached.keys().find(|index| network.links.contains_key(index)).copied()
    }

    /// Their indices.
    pub(super) fn indices(&self) -> Vec<u32> {
        self.attached.keys().copied().collect()
    }

    /// How they are, and which are wanted but not there.
    pub(super) fn status(&self, config: &Config, network: &Network) -> Vec<InterfaceStatus> {
        let with_link = |(index, status): (&u32, &InterfaceStatus)| {
            let is_down = network.links.get(index).is_some_and(|link| !link.up);
            let link = is_down.then(|| NO_LINK.to_owned());
            let causes: Vec<String> = link.into_iter().chain(status.cause.clone()).collect();
            let cause = (!causes.is_empty()).then(|| causes.join("; "));
            InterfaceStatus { cause, ..status.clone() }
        };
        let mut all: Vec<InterfaceStatus> = self.attached.iter().map(with_link).collect();
        for name in &config.interfaces {
            if !all.iter().any(|status| status.name == *name) {
                all.push(InterfaceStatus {
                    name: name.clone(),
                    mode: ABSENT.to_owned(),
                    cause: Some("no such interface".to_owned()),
                });
            }
        }
        all
    }

    /// Tells which of the addresses that services are bound to have come to this host, or have gone, since `before`; at
    /// the start, which aren't here: Keepalived may have them elsewhere, or somebody mistyped one.
    pub(super) fn tell_of_addresses(config: &Config, network: &Network, before: Option<&Network>) {
        let has =
            |network: &Network, ip: IpAddr| network.addresses.iter().any(|(_, own)| *own == ip);
        let bound: BTreeSet<IpAddr> = config
            .services
            .iter()
            .flat_map(|service| &service.binds)
            .filter_map(|bind| match bind {
                Bind::Address(address) => Some(address.ip()),
                Bind::Any(_) => None,
            })
            .collect();
        for ip in &config.nat_addresses {
            let before = before.is_none_or(|before| has(before, *ip));
            match (before, has(network, *ip)) {
                (true, false) => tracing::error!(
                    "{ip} of nat.addresses isn't an address of this host: what backends answer to it is lost, unless it \
                     is routed here"
                ),
                (false, true) => {
                    tracing::info!("{ip} of nat.addresses is an address of this host now");
                }
                _ => {}
            }
        }
        for ip in bound {
            let before = before.map(|before| has(before, ip));
            match (before, has(network, ip)) {
                (Some(true), false) => {
                    tracing::warn!("{ip} isn't an address of this host any longer");
                }
                (None, false) => {
                    tracing::info!(
                        "{ip} isn't an address of this host: it is served if it is routed here"
                    );
                }
                (Some(false), true) => tracing::info!("{ip} is an address of this host now"),
                _ => {}
            }
        }
    }

    /// Warns of backends that are reached by an interface without the program, where their replies are lost: once, until
    /// that is over.
    pub(super) fn warn_of_detours(&mut self, network: &Network) {
        let indices = self.indices();
        let mut detours = BTreeSet::new();
        for (address, hop) in &network.next_hops {
            let Ok(next) = hop else { continue };
            if network.base(next.interface, &indices).is_some() {
                continue;
            }
            detours.insert(*address);
            if !self.detours.contains(address) {
                let name = network.links.get(&next.interface).map_or("?", |link| &link.name);
                tracing::warn!(
                    backend = %address,
                    "it is reached by {name}, which isn't among interfaces: its replies are lost; \
                     add {name} to interfaces"
                );
            }
        }
        self.detours = detours;
    }
}
