//! Tables and time, as the packet logic sees them.

use super::{Family, ReplyRest, ReplyTraces, TracePlace, TraceSet, lasting, nat};
use crate::{
    abi::{
        Access, AccessKey, Answer, Backend, Beat, Client, ClientKey, Direction, Entry, Flow,
        FlowKey, FlowState, Fragment, FragmentKey, LocalMac, Membership, Moment, Refusal, Service,
        ServiceKey, Settings, Slot, Station,
    },
    wire::{NetworkU16, NetworkU32},
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
    fn now(&self) -> Moment;

    /// The present moment, for what is found without a look-up.
    fn beat(&self, settings: &Settings) -> Beat;

    /// What holds for the whole data path.
    fn settings(&self) -> Option<Settings>;

    /// What stands in a slot of the map of all rings.
    fn ring_slot(&self, slot: u32) -> Option<Slot>;

    /// Which sets a port is in.
    fn port_sets(&self, port: NetworkU16) -> Membership;

    /// Which of our hardware addresses stands at a place; zeros: none does.
    fn station(&self, place: u32) -> Option<&Station>;

    /// Whether a hardware address is ours, without telling of all that are.
    #[inline(always)]
    fn is_station(&self, mac: &LocalMac) -> bool {
        self.station(mac.place()).is_some_and(|station| station.mac.same(mac))
    }

    /// The traces of flows in a set; none where there is no such set.
    fn traces(&self, set: u32) -> TraceSet;

    /// The same. No earlier access comes after it.
    fn confirmed_traces(&self, set: u32) -> TraceSet;

    /// Replaces one of them, whatever another CPU made of it meanwhile. No later access comes before it.
    fn set_trace(&self, set: u32, way: usize, word: u64);

    /// The first halves of the traces in a set of those of flows whose replies pass through us; none where there is no such set.
    fn nat_traces(&self, set: u32) -> TraceSet;

    /// The same. No earlier access comes after it.
    fn confirmed_nat_traces(&self, set: u32) -> TraceSet;

    /// The other half of such a trace.
    fn nat_rest(&self, set: u32, way: usize) -> u64;

    /// Replaces both, the second one first, whatever another CPU made of them meanwhile. No later access comes before it.
    fn set_nat_trace(&self, set: u32, way: usize, word: u64, rest: u64);

    /// A backend by its index.
    fn backend(&self, index: u32) -> Option<&Backend>;

    /// An address that full NAT sends from.
    fn nat_source(&self, index: u32) -> Option<&[NetworkU32; 4]>;

    /// A word of the map of all pools of source ports.
    fn ports_word(&self, index: u32) -> Option<u64>;

    /// Replaces such a word, whatever another CPU made of it meanwhile.
    fn set_ports_word(&self, index: u32, word: u64);

    /// Clears bits of such a word, and returns what it was, all at once.
    fn take_ports(&self, index: u32, bits: u64) -> Option<u64>;

    /// Sets bits of such a word.
    fn give_ports(&self, index: u32, bits: u64);

    /// Whether the backend has refused connections lately.
    fn refusal(&self, backend: u32) -> Refusal;

    /// Sets that.
    fn set_refusal(&self, backend: u32, refusal: Refusal);

    /// Connections under way to a backend: a little wrong for some seconds where entries of flows were evicted, also
    /// below zero.
    fn load(&self, backend: u32) -> i64;

    /// The same of a service.
    fn service_load(&self, service: u32) -> i64;

    /// Adds to both. A service that has no counts stands for none at all.
    fn add_load(&self, service: u32, backend: u32, number: i64);

    /// Counts a backend's answer to a SYN, or that there was none.
    fn count_answer(&self, backend: u32, answer: Answer);

    /// Counts the connections whose backends are chosen in turn, on this CPU, and returns how many there were before.
    fn take_turn(&self, service: u32) -> u64;

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

    /// The first halves of the traces in a set of those of replies; none where there is no such set.
    fn reply_traces(&self, set: u32) -> ReplyTraces;

    /// The other half of such a trace.
    fn reply_rest(&self, set: u32, way: usize) -> ReplyRest<A>;

    /// Replaces both, the second one first, whatever another CPU made of them meanwhile. No later access comes before it.
    fn set_reply_trace(&self, set: u32, way: usize, word: u64, rest: &ReplyRest<A>);

    /// Erases such a trace.
    fn erase_reply_trace(&self, set: u32, way: usize);

    /// Erases those of a flow in its set. No earlier access comes after they are looked at.
    fn erase_reply_traces(&self, place: TracePlace);

    /// The service that clients reach under a key.
    fn service(&self, key: &ServiceKey<A>) -> Option<Service>;

    /// What a list says of an address; `None`: nothing.
    fn access(&self, key: &AccessKey<A>) -> Option<Access>;

    /// The backend that a client keeps, if it is known.
    fn client(&self, key: &ClientKey<A>) -> Option<Client>;

    /// Remembers the backend that a client keeps. What was least recently used is forgotten for it.
    fn remember_client(&self, key: &ClientKey<A>, client: Client);

    /// When the next SYN of a source is due, in nanoseconds, if that is known.
    fn source_due(&self, source: A) -> Option<u64>;

    /// Sets that. What was least recently used is forgotten for it.
    fn set_source_due(&self, source: A, due: u64);

    /// What the first fragment of a datagram said, if it hasn't been forgotten.
    fn fragment(&self, key: &FragmentKey<A>) -> Option<Fragment>;

    /// Remembers what the first fragment of a datagram said, instead of what was known of it. What was
    /// least recently used is forgotten for it.
    fn remember_fragment(&self, key: &FragmentKey<A>, fragment: &Fragment);
}

/// Removes a flow's entries, which are in another table by now: the one of `key`, whose value is `flow`, and
/// the other direction's.
#[inline(always)]
pub(super) fn remove<A: Family, T: FamilyTables<A>>(
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

/// Removes a flow's entries: the one of `key`, whose value is `flow`, and the other direction's. Its traces are erased
/// and its source port given back by the caller, in this order.
#[inline(always)]
pub(super) fn take_out<A: Family, T: FamilyTables<A>>(
    tables: &T,
    table: Table,
    key: &FlowKey<A>,
    flow: &Flow<A>,
) {
    remove(tables, table, key, flow);
    if flow.is_under_way() {
        tables.add_load(flow.service, flow.backend, -1);
    }
}

/// Removes a flow's entries, as [`take_out`], and its traces. Then its source port is free again, as that of one that was
/// surely over was before.
#[inline(always)]
pub(super) fn forget<A: Family, T: FamilyTables<A>>(
    tables: &T,
    table: Table,
    key: &FlowKey<A>,
    flow: &Flow<A>,
) {
    take_out(tables, table, key, flow);
    if matches!(table, Table::Established) {
        lasting::erase(tables, key, flow, None);
    }
    if !flow.is_surely_over() {
        nat::give_back(tables, flow, key);
    }
}

/// Counts a flow as one of its backend's connections, or no longer, since its state becomes another.
#[inline(always)]
pub(super) fn follow_load<A: Family, T: FamilyTables<A>>(
    tables: &T,
    flow: &Flow<A>,
    state: FlowState,
) {
    let after = state.is_under_way(flow.forwarding);
    if after != flow.is_under_way() {
        tables.add_load(flow.service, flow.backend, if after { 1 } else { -1 });
    }
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
