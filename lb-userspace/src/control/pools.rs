//! Which backends share a pool of source ports, and where those lie.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::Instant,
};

use lb_common::abi::pool_words;

use super::{
    plan::{Change, NoSpace, Plan},
    space::Space,
    state::{BackendState, State},
};

/// What a pool of source ports is for: whatever sends to the same address and port from the same addresses
/// and ports shares one.
#[derive(PartialEq, Eq, Hash)]
struct PoolKey {
    backend: SocketAddr,
    protocol: u8,
    sources: (u32, u32),
    ports: (u32, u32),
}

impl PoolKey {
    fn new(state: &State, backend: &BackendState) -> Option<Self> {
        let service = state.services.get(&backend.info.service)?;
        backend.has_pool().then(|| Self {
            backend: backend.address(),
            protocol: service.protocol.number(),
            sources: (backend.backend.nat_source, backend.backend.nat_sources.into()),
            ports: (state.settings.nat_port_first, state.settings.nat_port_count),
        })
    }
}

impl State {
    /// Forgets of all backends where their pools lie, if they can't all have the size that the settings say: a controller
    /// was killed between these and those. Then each gets another.
    pub(super) fn doubt_pools(&mut self) {
        let with_pool = self.backends.values().filter(|state| state.has_pool());
        let pools: BTreeMap<u32, u32> = with_pool
            .map(|state| (state.backend.ports, pool_words(self.pool_ports(&state.backend))))
            .collect();
        let overlap = |((start, size), next): ((&u32, &u32), &u32)| start + size > *next;
        if pools.iter().zip(pools.keys().skip(1)).any(overlap) {
            for state in self.backends.values_mut() {
                state.backend.nat_sources = 0;
            }
        }
    }
}

/// Which services have the same protocol as they are wanted and as they are there: none, where ports differ.
struct Protocols(Vec<bool>);

impl Protocols {
    fn new(wanted: &State, there: &State) -> Self {
        let ports = |state: &State| (state.settings.nat_port_first, state.settings.nat_port_count);
        if ports(wanted) != ports(there) {
            return Self(Vec::new());
        }
        let end = wanted.services.keys().next_back().map_or(0, |last| last + 1);
        let is_same = |index| {
            let known = there.services.get(&index);
            known.is_some_and(|known| wanted.services[&index].protocol == known.protocol)
        };
        Self((0..end).map(|index| wanted.services.contains_key(&index) && is_same(index)).collect())
    }

    /// Whether a backend that is wanted has the pool of one that is there, as by [`PoolKey`], without a look at others.
    fn share_pool(&self, wanted: &BackendState, there: &BackendState) -> bool {
        let key = |state: &BackendState| {
            let backend = &state.backend;
            let sources = (backend.nat_source, u32::from(backend.nat_sources));
            (state.info.service, backend.address, backend.port, sources)
        };
        let same_protocol = self.0.get(wanted.info.service as usize).copied().unwrap_or(false);
        same_protocol && wanted.has_pool() && there.has_pool() && key(wanted) == key(there)
    }
}

/// Places the pools of source ports that aren't there yet. Returns where each backend's lies, by index.
pub(super) fn plan(
    wanted: &State,
    there: &State,
    space: &mut Space,
    now: Instant,
    plan: &mut Plan,
) -> Vec<(u32, u32)> {
    let known = |state: &BackendState| Some((PoolKey::new(there, state)?, state.backend.ports));
    let mut shared: Option<HashMap<PoolKey, u32>> = None;
    let mut places = Vec::with_capacity(wanted.backends.len());
    let of_services = Protocols::new(wanted, there);
    let mut those_there = there.backends.iter().peekable();
    for (index, state) in &wanted.backends {
        while those_there.next_if(|(other, _)| *other < index).is_some() {}
        // Most have theirs already.
        if let Some((_, own)) = those_there.next_if(|(other, _)| *other == index)
            && of_services.share_pool(state, own)
        {
            places.push((*index, own.backend.ports));
            continue;
        }
        let Some(key) = PoolKey::new(wanted, state) else { continue };
        let pools =
            shared.get_or_insert_with(|| there.backends.values().filter_map(known).collect());
        let place = match pools.get(&key) {
            Some(place) => *place,
            None => {
                let ports = wanted.pool_ports(&state.backend);
                let size = pool_words(ports);
                let Some(place) = space.allocate(size, now) else {
                    plan.shortage = Some(NoSpace { what: "a pool of source ports", size: ports });
                    continue;
                };
                plan.changes.push(Change::WritePool(place, ports));
                pools.insert(key, place);
                place
            }
        };
        places.push((*index, place));
    }
    places
}

#[cfg(test)]
mod tests {
    use lb_common::abi::{BackendInfo, Forwarding};

    use super::*;

    #[test]
    fn pools_that_cannot_have_their_size_are_given_up() {
        let mut state = State::default();
        state.settings.nat_port_count = 64;
        for (index, ports) in [(1, 0), (2, 3), (3, 3), (4, 9)] {
            let mut backend = lb_common::abi::Backend::default();
            (backend.forwarding, backend.nat_sources) = (Forwarding::FullNat, 1);
            backend.ports = ports;
            let info: BackendInfo = bytemuck::Zeroable::zeroed();
            state.backends.insert(index, BackendState { backend, info });
        }
        let known = |state: &State| state.backends.values().filter(|one| one.has_pool()).count();
        state.doubt_pools();
        assert_eq!(known(&state), 4, "three words each");
        state.settings.nat_port_count = 65;
        state.doubt_pools();
        assert_eq!(known(&state), 0, "five words each");
    }
}
