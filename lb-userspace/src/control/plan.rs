//! What has to be changed so that what is there becomes what is wanted: a pure diff.

use std::{collections::BTreeMap, net::IpAddr, time::Instant};

use ipnet::IpNet;
use lb_common::abi::{
    Access, Backend, BackendInfo, LocalMac, Ring, Service, ServiceInfo, Settings,
};

use super::{
    pools,
    space::Space,
    state::{Bind, RingState, State},
};

/// One step. In the order of a plan, no packet ever meets a half-made thing: what is named is
/// there before what names it, and goes after it.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Write the settings.
    Settings(Settings),
    /// Write an address that full NAT sends from.
    NatSource(u32, IpAddr),
    /// Take frames for a hardware address, from where datagrams may be so long, in bytes.
    Mac(LocalMac, u32),
    /// Take them no longer.
    RemoveMac(LocalMac),
    /// Let frames leave by an interface.
    AddEgress(u32),
    /// No longer.
    RemoveEgress(u32),
    /// Put a service's counters to zero: its index has a new owner.
    ClearService(u32),
    /// Write a service's info.
    Service(u32, ServiceInfo),
    /// Free a service's index.
    FreeService(u32),
    /// Put a backend's counters to zero: its index has a new owner.
    ClearBackend(u32),
    /// Write what the packet path knows of a backend.
    Backend(u32, Backend),
    /// Write a backend's info.
    BackendInfo(u32, Box<BackendInfo>),
    /// Free a backend's index.
    FreeBackend(u32),
    /// Write a ring of a service where no packet looks yet.
    WriteRing(u32, RingState),
    /// Fill a pool of so many source ports, all free, where no packet looks yet.
    WritePool(u32, u32),
    /// Write what a list says of a network.
    Network(u32, IpNet, Access),
    /// Forget it.
    RemoveNetwork(u32, IpNet),
    /// Let clients reach a service, by its ring.
    Bind(Bind, Service),
    /// No longer.
    Unbind(Bind),
    /// Forget a service's ring.
    ForgetRing(u32),
}

/// The rings of all services together don't fit, or the pools of all backends.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "no room for {what} of {size}; to make more, stop the controller, run `lb detach` and start it \
     again"
)]
pub struct NoSpace {
    /// For what.
    pub what: &'static str,
    /// How much that takes.
    pub size: u32,
}

/// What is free of the maps that hold many things of different sizes.
#[derive(Clone, Debug)]
pub struct Spaces {
    /// Of slots of rings.
    pub rings: Space,
    /// Of words of pools of source ports.
    pub pools: Space,
}

impl Spaces {
    /// Takes back what isn't there any longer; it rests from `now` on.
    pub fn keep(&mut self, there: &State, now: Instant) {
        self.rings.keep(&there.ring_offsets(), now);
        self.pools.keep(&there.pool_offsets(), now);
    }
}

/// What has to be done.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// The steps, in their order.
    pub changes: Vec<Change>,
    /// What finds no place, and stays as it is: a ring the one before, and a backend without a pool gets no packets.
    pub shortage: Option<NoSpace>,
}

/// The steps from `there` to `wanted`. New pools, and rings that are wanted with other contents, get a
/// place in `spaces`, as free at `now`.
pub fn plan(wanted: &State, there: &State, spaces: &mut Spaces, now: Instant) -> Plan {
    let mut plan = Plan::default();
    let changes = &mut plan.changes;
    if wanted.settings != there.settings {
        changes.push(Change::Settings(wanted.settings));
    }
    for (index, address) in wanted.nat_sources.iter().enumerate() {
        if there.nat_sources.get(index) != Some(address) {
            changes.push(Change::NatSource(index as u32, *address));
        }
    }
    for (mac, longest) in &wanted.local_macs {
        if there.local_macs.get(mac) != Some(longest) {
            changes.push(Change::Mac(*mac, *longest));
        }
    }
    let new_egress = wanted.egress.difference(&there.egress);
    changes.extend(new_egress.map(|index| Change::AddEgress(*index)));
    for (list, network, access) in networks(wanted) {
        if there.access.get(&list).and_then(|known| known.get(&network)) != Some(&access) {
            changes.push(Change::Network(list, network, access));
        }
    }
    let pools = pools::plan(wanted, there, &mut spaces.pools, now, &mut plan);
    let shown = plan_infos(wanted, there, &pools, &mut plan.changes);
    plan_rings(wanted, there, &mut spaces.rings, now, &mut plan);
    plan.changes.extend(shown);
    plan_departures(wanted, there, &mut plan.changes);
    plan
}

/// Everything that lists say.
pub(super) fn networks(state: &State) -> impl Iterator<Item = (u32, IpNet, Access)> {
    let of_list = |(list, networks): (&u32, &BTreeMap<IpNet, Access>)| {
        let list = *list;
        networks.clone().into_iter().map(move |(network, access)| (list, network, access))
    };
    state.access.iter().flat_map(of_list)
}

/// Returns the changes to what is shown of backends that are there already: they come after the rings, so that nobody
/// is told that a backend is up before its first connection can come.
fn plan_infos(
    wanted: &State,
    there: &State,
    pools: &[(u32, u32)],
    changes: &mut Vec<Change>,
) -> Vec<Change> {
    let mut shown = Vec::new();
    for (index, info) in &wanted.services {
        let known = there.services.get(index);
        if known.is_none() {
            changes.push(Change::ClearService(*index));
        }
        if known != Some(info) {
            changes.push(Change::Service(*index, *info));
        }
    }
    let mut those_there = there.backends.iter().peekable();
    let mut pools = pools.iter().peekable();
    for (index, state) in &wanted.backends {
        while those_there.next_if(|(other, _)| *other < index).is_some() {}
        let known = those_there.next_if(|(other, _)| *other == index).map(|(_, known)| known);
        if known.is_none() {
            changes.push(Change::ClearBackend(*index));
        }
        let pool = pools.next_if(|(other, _)| other == index).map(|(_, place)| *place);
        let backend = match pool {
            None if state.has_pool() => Backend { ports: 0, nat_sources: 0, ..state.backend },
            _ => Backend { ports: pool.unwrap_or(0), ..state.backend },
        };
        if known.map(|known| known.backend) != Some(backend) {
            changes.push(Change::Backend(*index, backend));
        }
        let change = || Change::BackendInfo(*index, Box::new(state.info));
        match known.map(|known| known.info) {
            Some(info) if info == state.info => {}
            Some(info) if info.lifecycle == state.info.lifecycle => shown.push(change()),
            _ => changes.push(change()),
        }
    }
    shown
}

pub(super) fn plan_rings(
    wanted: &State,
    there: &State,
    space: &mut Space,
    now: Instant,
    plan: &mut Plan,
) {
    let changes = &mut plan.changes;
    let mut in_force = BTreeMap::new();
    for (service, state) in &wanted.rings {
        let known = there.rings.get(service).cloned().unwrap_or_default();
        if known.is_like(state) {
            in_force.insert(*service, known.ring);
            continue;
        }
        let size = state.room();
        let place = if size == 0 { Some(0) } else { space.allocate(size, now) };
        let Some(offset) = place else {
            plan.shortage = Some(NoSpace { what: "a ring", size });
            in_force.insert(*service, known.ring);
            continue;
        };
        let ring = Ring::new(offset, state.slots.len() as u32, known.ring.generation() + 1);
        changes.push(Change::WriteRing(*service, RingState { ring, ..state.clone() }));
        in_force.insert(*service, ring);
    }
    for (bind, wanted) in &wanted.binds {
        let ring = in_force.get(&wanted.index).copied().unwrap_or_default();
        let service = Service { ring, ..*wanted };
        if there.binds.get(bind) != Some(&service) {
            changes.push(Change::Bind(*bind, service));
        }
    }
    let gone = there.binds.keys().filter(|bind| !wanted.binds.contains_key(bind));
    changes.extend(gone.map(|bind| Change::Unbind(*bind)));
    let gone = there.rings.keys().filter(|service| !wanted.rings.contains_key(service));
    changes.extend(gone.map(|service| Change::ForgetRing(*service)));
}

fn plan_departures(wanted: &State, there: &State, changes: &mut Vec<Change>) {
    for (list, network, _) in networks(there) {
        if !wanted.access.get(&list).is_some_and(|known| known.contains_key(&network)) {
            changes.push(Change::RemoveNetwork(list, network));
        }
    }
    let gone = there.backends.keys().filter(|index| !wanted.backends.contains_key(index));
    changes.extend(gone.map(|index| Change::FreeBackend(*index)));
    let gone = there.services.keys().filter(|index| !wanted.services.contains_key(index));
    changes.extend(gone.map(|index| Change::FreeService(*index)));
    let gone = there.local_macs.keys().filter(|mac| !wanted.local_macs.contains_key(mac));
    changes.extend(gone.map(|mac| Change::RemoveMac(*mac)));
    let gone = there.egress.difference(&wanted.egress);
    changes.extend(gone.map(|index| Change::RemoveEgress(*index)));
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        net::{Ipv4Addr, SocketAddr},
        sync::Arc,
    };

    use lb_common::abi::Protocol;

    use super::*;

    const fn bind(last: u8) -> Bind {
        let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, last));
        Bind { address: SocketAddr::new(address, 80), protocol: Protocol::Tcp }
    }

    const FIRST: Bind = bind(1);
    const SECOND: Bind = bind(2);

    fn service(ring: Ring) -> Service {
        Service { ring, index: 7, ..Service::default() }
    }

    fn state(binds: [(Bind, Service); 2], slots: Vec<u32>, ring: Ring) -> State {
        State {
            binds: binds.into(),
            rings: [(7, RingState { slots: Arc::new(slots), members: Arc::default(), ring })]
                .into(),
            ..State::default()
        }
    }

    fn spaces() -> Spaces {
        Spaces { rings: Space::new(9), pools: Space::new(0) }
    }

    #[test]
    fn a_swap_that_was_cut_short_between_two_binds_is_completed() {
        let (old, new) = (Ring::new(0, 3, 1), Ring::new(3, 3, 2));
        let slots = vec![1, 2, 2];
        let there = state([(FIRST, service(new)), (SECOND, service(old))], slots.clone(), new);
        let unplaced = service(Ring::default());
        let wanted = state([(FIRST, unplaced), (SECOND, unplaced)], slots, Ring::default());
        assert_eq!(there.ring_offsets(), BTreeSet::from([0, 3]), "both are in use");
        let plan = plan(&wanted, &there, &mut spaces(), Instant::now());
        let changes = vec![Change::Bind(SECOND, service(new))];
        assert_eq!(plan, Plan { changes, shortage: None });
    }

    #[test]
    fn what_finds_no_room_stays_and_the_rest_is_done() {
        let there = State::default();
        let unplaced = service(Ring::default());
        let wanted = state([(FIRST, unplaced), (SECOND, unplaced)], vec![1; 10], Ring::default());
        let mut spaces = spaces();
        let no_space = NoSpace { what: "a ring", size: 11 };
        let plan = plan(&wanted, &there, &mut spaces, Instant::now());
        assert_eq!(plan.shortage, Some(no_space));
        let nowhere = service(Ring::default());
        assert_eq!(
            plan.changes,
            [FIRST, SECOND].map(|bind| Change::Bind(bind, nowhere)),
            "both are reached, and have no backend"
        );
        assert_eq!(spaces.rings.allocate(9, Instant::now()), Some(0));
    }
}
