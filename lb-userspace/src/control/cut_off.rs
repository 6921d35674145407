//! Interfaces without a link: what this host can't see through them says nothing of the backends behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{state::State, troubles::Troubles};
use crate::netlink::Network;

/// By backend, whether the interface that leads there has no link.
#[derive(Debug, Default)]
pub(super) struct CutOff(BTreeMap<u32, Arc<AtomicBool>>);

impl CutOff {
    /// Tells at any time whether there is no link to a backend.
    pub(super) fn of(&mut self, backend: u32) -> Arc<AtomicBool> {
        Arc::clone(self.0.entry(backend).or_default())
    }

    /// Takes in what the network looks like now, and tells what has changed.
    pub(super) fn take_in(&mut self, state: &State, network: &Network, troubles: &mut Troubles) {
        let mut down = BTreeSet::new();
        self.0.retain(|index, is_cut_off| {
            let Some(backend) = state.backends.get(index) else { return false };
            // The way that it was reached last; one that is away as a whole is told of elsewhere.
            let interface = backend.backend.next_hop.interface;
            let link = network.links.get(&interface);
            let is_down = interface != 0 && link.is_none_or(|link| !link.up);
            is_cut_off.store(is_down, Ordering::Relaxed);
            down.extend(link.filter(|_| is_down).map(|link| link.name.as_str()));
            true
        });
        let down: Vec<&str> = down.into_iter().collect();
        let result = if down.is_empty() {
            Ok(())
        } else {
            Err(format!(
                "no link on {}: nothing comes or goes there, and the backends behind aren't judged meanwhile",
                down.join(", ")
            ))
        };
        troubles.note("link", result);
    }
}
