//! Whether there is room for what is wanted, asked before anything is changed.

use std::{collections::BTreeSet, time::Instant};

use ipnet::IpNet;
use lb_common::abi::{Forwarding, pool_words};

use super::{
    configure::Room,
    plan::{NoSpace, Plan, Spaces, networks, plan_rings},
    pools,
    state::{BackendState, State},
};

/// Demands that there is room for what is wanted beside what is there: of what is replaced, both are for a moment.
///
/// # Errors
///
/// There isn't.
pub(super) fn demand_entries(wanted: &State, there: &State, room: &Room) -> Result<(), NoSpace> {
    let lists = |state: &State| -> BTreeSet<(u32, IpNet)> {
        networks(state).map(|(list, network, _)| (list, network)).collect()
    };
    let demand = |count: usize, room: u32, what| match u32::try_from(count) {
        Ok(size) if size <= room => Ok(()),
        size => Err(NoSpace { what, size: size.unwrap_or(u32::MAX) }),
    };
    let both = lists(wanted).union(&lists(there)).count();
    demand(both, room.networks, "lists of networks, old and new side by side,")?;
    let binds = wanted.binds.keys().chain(there.binds.keys()).collect::<BTreeSet<_>>();
    demand(binds.len(), room.binds, "addresses of services, old and new side by side,")
}

/// What would find no place, if every backend that isn't reached yet had `sources` addresses to be sent to from.
pub(super) fn shortage(
    wanted: &State,
    there: &State,
    mut spaces: Spaces,
    now: Instant,
    sources: u32,
) -> Option<NoSpace> {
    let mut plan = Plan::default();
    plan_rings(wanted, there, &mut spaces.rings, now, &mut plan);
    pools::plan(wanted, there, &mut spaces.pools, now, &mut plan);
    let is_unreached = |state: &&BackendState| {
        state.backend.forwarding == Forwarding::FullNat && state.backend.nat_sources == 0
    };
    let ports = wanted.settings.nat_port_count * sources;
    for _ in wanted.backends.values().filter(is_unreached) {
        if spaces.pools.allocate(pool_words(ports), now).is_none() {
            return Some(NoSpace { what: "a pool of source ports", size: ports });
        }
    }
    plan.shortage
}
