//! Tables and time, as the packet logic sees them.

use super::Family;
use crate::{
    abi::{
        Backend, Direction, Entry, Flow, FlowKey, Fragment, FragmentKey, LocalMac, Service,
        ServiceKey, Settings, Tick,
    },
    wire::NetworkU32,
};

/// Which table of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Connections whose handshake is complete. Nothing is evicted from it.
    Established,
    /// Half-open handshakes. The least recently used make room for new ones.
    Embryonic,
}

/// Why an entry wasn't inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// The key is there already.
    Exists,
    /// There is no room.
    Full,
}

/// What the packet logic looks up and counts, whatever the address family.
pub trait Tables {
    /// The present moment.
    fn now(&self) -> Tick;

    /// What holds for the whole data path.
    fn settings(&self) -> Option<Settings>;

    /// The backend's index in a slot of the map of all rings.
    fn ring_slot(&self, slot: u32) -> Option<u32>;

    /// A backend by its index.
    fn backend(&self, index: u32) -> Option<&Backend>;

    /// An address that full NAT sends from.
    fn nat_source(&self, index: u32) -> Option<[NetworkU32; 4]>;

    /// A number that grows by one with every call for the same backend, and wraps.
    fn next_nat_cursor(&self, backend: u32) -> Option<u32>;

    /// The longest datagram that can be sent from this hardware address, in bytes; `None` where frames for
    /// it aren't ours.
    fn local_mac(&self, mac: &LocalMac) -> Option<u32>;

    /// Counts a forwarded packet of `bytes` bytes. A service that has no counts stands for none at all.
    fn count_packet(&self, service: u32, backend: u32, direction: Direction, bytes: u64);

    /// Counts a completed handshake, or the beginning of a flow without one.
    fn count_new_flow(&self, service: u32, backend: u32);
}

/// The tables that are keyed by addresses of family `A`.
pub trait FamilyTables<A: Family>: Tables {
    /// The entry of one direction of a flow.
    fn find(&self, table: Table, key: &FlowKey<A>) -> Option<Entry<'_, Flow<A>>>;

    /// Adds an entry under a key that isn't there yet.
    fn insert(&self, table: Table, key: &FlowKey<A>, flow: &Flow<A>) -> Result<(), InsertError>;

    /// Removes an entry, if it is there.
    fn remove(&self, table: Table, key: &FlowKey<A>);

    /// The service that clients reach under a key.
    fn service(&self, key: &ServiceKey<A>) -> Option<Service>;

    /// What the first fragment of a datagram said, if it hasn't been forgotten.
    fn fragment(&self, key: &FragmentKey<A>) -> Option<Fragment>;

    /// Remembers what the first fragment of a datagram said, instead of what was known of it. What was
    /// least recently used is forgotten for it.
    fn remember_fragment(&self, key: &FragmentKey<A>, fragment: &Fragment);
}

/// Removes a flow's entries: the one of `key`, whose value is `flow`, and the other direction's.
#[inline(always)]
pub(super) fn forget<A: Family, T: FamilyTables<A>>(
    tables: &T,
    table: Table,
    key: &FlowKey<A>,
    flow: &Flow<A>,
) {
    if flow.forwarding.sees_replies() {
        tables.remove(table, &flow.peer_key(key.protocol));
    }
    tables.remove(table, key);
}

/// A copy of a flow's entry, whichever table it is in.
#[inline(always)]
pub(super) fn find_anywhere<A: Family, T: FamilyTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
) -> Option<Flow<A>> {
    let entry = match tables.find(Table::Established, key) {
        Some(entry) => entry,
        None => tables.find(Table::Embryonic, key)?,
    };
    Some(entry.read())
}

/// The entry of a flow's other direction, where it has one.
#[inline(always)]
pub(super) fn find_peer<'t, A: Family, T: FamilyTables<A>>(
    tables: &'t T,
    table: Table,
    key: &FlowKey<A>,
    flow: &Flow<A>,
) -> Option<Entry<'t, Flow<A>>> {
    if !flow.forwarding.sees_replies() {
        return None;
    }
    tables.find(table, &flow.peer_key(key.protocol))
}
