//! The interfaces that the program is attached to.

use std::collections::BTreeMap;

use crate::{
    api::InterfaceStatus,
    config::Config,
    dataplane::{DataplaneError, Loaded, Pins, attach, detach},
    netlink::{self, Network},
};

/// Which interfaces the configuration means.
///
/// # Errors
///
/// One of them doesn't exist, or there is no default route to choose by: the text says which.
pub(super) fn wanted(config: &Config, network: &Network) -> Result<Vec<(u32, String)>, String> {
    if config.interfaces.is_empty() {
        let index = network.default_interface.ok_or(
            "no interface is named and there is no default route to choose one by: set \
             interfaces = [\"eth0\"], or use --interface",
        )?;
        let name = network.links.get(&index).map(|link| link.name.clone()).unwrap_or_default();
        return Ok(vec![(index, name)]);
    }
    let find = |name: &String| {
        let index = network.index(name).ok_or_else(|| {
            let names: Vec<&str> = network.links.values().map(|link| link.name.as_str()).collect();
            format!("no such interface: {name}; there are {}", names.join(", "))
        })?;
        Ok((index, name.clone()))
    };
    config.interfaces.iter().map(find).collect()
}

/// The interfaces that the program is attached to.
#[derive(Debug, Default)]
pub(super) struct Interfaces {
    attached: BTreeMap<u32, InterfaceStatus>,
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
            let attached =
                attach(loaded.program()?, pins, (*index, name), config.xdp_mode, current)?;
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
            for trouble in netlink::trouble(name, attached.mode) {
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
        for interface in detach(pins, |index| !keep.contains(&index))? {
            tracing::info!(interface, "detached");
        }
        self.attached.retain(|index, _| keep.contains(index));
        Ok(())
    }

    /// Their indices.
    pub(super) fn indices(&self) -> Vec<u32> {
        self.attached.keys().copied().collect()
    }

    /// How they are.
    pub(super) fn status(&self) -> Vec<InterfaceStatus> {
        self.attached.values().cloned().collect()
    }

    /// Warns of backends that are reached by an interface without the program, where their replies
    /// would be lost, unless that was so `before` as well.
    pub(super) fn warn_of_detours(&self, network: &Network, before: &Network) {
        for (address, hop) in &network.next_hops {
            let Ok(next) = hop else { continue };
            let known = before.next_hops.get(address) == Some(hop);
            if !known && !self.attached.contains_key(&next.interface) {
                let name = network.links.get(&next.interface).map_or("?", |link| &link.name);
                tracing::warn!(
                    backend = %address,
                    "it is reached by {name}, which isn't among interfaces: its replies are lost; \
                     add {name} to interfaces"
                );
            }
        }
    }
}
