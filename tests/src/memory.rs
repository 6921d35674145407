//! Tables in memory, of one address family.

use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::HashMap,
    ptr::NonNull,
};

use bytemuck::{Pod, Zeroable};
use lb_common::{
    abi::{
        CHECK_SERVICE, Client, ClientKey, Direction, Entry, Flow, FlowKey, FlowState, Fragment,
        FragmentKey, Service, ServiceKey, Tick, finished,
    },
    datapath::{ErrorScratch, Family, InsertError, ReplyRest, Table},
    wire::Address,
};

/// What is compared of a flow's entry: all but its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Where the connection stands.
    pub state: FlowState,
    /// The entry's bytes.
    timeless: Vec<u8>,
}

impl Recorded {
    /// What there is to compare of an entry.
    pub fn new<A: Address>(flow: &Flow<A>) -> Self
    where
        Flow<A>: Pod,
    {
        let mut timeless = Flow { opened: Tick::default(), last_seen: Tick::default(), ..*flow };
        let is_request = flow.direction == Direction::ToBackend as u8;
        if is_request
            && flow.forwarding.sees_replies()
            && [FlowState::SYN, FlowState::REFUSED].contains(&flow.state)
        {
            // When the SYN came.
            timeless.number = 0;
        }
        Self { state: flow.state, timeless: bytemuck::bytes_of(&timeless).to_vec() }
    }
}

/// The tick that came so many before.
pub(crate) const fn earlier(tick: Tick, ticks: u32) -> Tick {
    Tick::of_number(tick.number().wrapping_sub(ticks))
}

/// Entries of flows by the bytes of their keys, whose lengths differ by family.
pub type Records = HashMap<Vec<u8>, Recorded>;

/// Boxed, so that entries stay in place while the table grows.
type FlowTable<A> = RefCell<HashMap<FlowKey<A>, Box<UnsafeCell<Flow<A>>>>>;

/// A copy of a table, whose entries are its own.
fn copy<A: Address>(table: &FlowTable<A>) -> FlowTable<A>
where
    Flow<A>: Pod,
{
    let mut copies = HashMap::new();
    for (key, flow) in &*table.borrow() {
        // SAFETY: no packet is under way.
        copies.insert(*key, Box::new(UnsafeCell::new(unsafe { *flow.get() })));
    }
    RefCell::new(copies)
}

/// Both halves of traces of replies, by set and way.
type Replies<A> = HashMap<(u32, usize), (u64, ReplyRest<A>)>;

/// The tables of one address family.
pub(crate) struct FamilyMemory<A: Family> {
    pub(crate) services: HashMap<ServiceKey<A>, Service>,
    pub(crate) established: FlowTable<A>,
    pub(crate) embryonic: FlowTable<A>,
    pub(crate) fragments: RefCell<HashMap<FragmentKey<A>, Fragment>>,
    pub(crate) clients: RefCell<HashMap<ClientKey<A>, Client>>,
    pub(crate) sources: RefCell<HashMap<A, u64>>,
    /// Traces of replies.
    pub(crate) replies: RefCell<Replies<A>>,
    /// Whether every established flow is reset by its backend, on another CPU, whenever a trace is left.
    pub(crate) resets: Cell<bool>,
    /// Removed entries; the packet that removed them may still hold their place.
    pub(crate) removed: RefCell<Vec<Box<UnsafeCell<Flow<A>>>>>,
    pub(crate) most_entries: usize,
    /// What a part leaves to the next.
    pub(crate) scratch: RefCell<ErrorScratch<A>>,
}

impl<A: Family> FamilyMemory<A>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    pub(crate) fn new(services: Vec<(ServiceKey<A>, Service)>, most_entries: usize) -> Self {
        Self {
            services: services.into_iter().collect(),
            established: RefCell::default(),
            embryonic: RefCell::default(),
            fragments: RefCell::default(),
            clients: RefCell::default(),
            sources: RefCell::default(),
            replies: RefCell::default(),
            resets: Cell::default(),
            removed: RefCell::default(),
            most_entries,
            scratch: RefCell::new(ErrorScratch::zeroed()),
        }
    }

    pub(crate) fn table(&self, table: Table) -> &FlowTable<A> {
        match table {
            Table::Established => &self.established,
            Table::Embryonic => &self.embryonic,
        }
    }

    /// Forgets what is in a table.
    pub(crate) fn forget(&self, table: Table) {
        self.table(table).borrow_mut().clear();
    }

    /// Resets every established flow, if another CPU is to do so.
    pub(crate) fn reset_if_wanted(&self) {
        if self.resets.get() {
            for key in self.established.borrow().keys() {
                let entry = self.find(Table::Established, key);
                if let Some(entry) = entry {
                    entry.set_state(FlowState::CLOSED, finished::BACKEND_RESET);
                }
            }
        }
    }

    /// Makes the entries of established flows older by so many ticks.
    pub(crate) fn age(&self, ticks: u32) {
        for flow in self.established.borrow_mut().values_mut() {
            let flow = flow.get_mut();
            flow.opened = earlier(flow.opened, ticks);
            flow.last_seen = earlier(flow.last_seen, ticks);
        }
    }

    pub(crate) fn record(&self, table: Table, records: &mut Records) {
        for (key, flow) in &*self.table(table).borrow() {
            // SAFETY: no packet is under way.
            let flow = unsafe { *flow.get() };
            records.insert(bytemuck::bytes_of(key).to_vec(), Recorded::new(&flow));
        }
    }

    pub(crate) fn under_way(&self, table: Table, backend: u32) -> i64 {
        let table = self.table(table).borrow();
        // SAFETY: no packet is under way.
        let flows = table.values().map(|flow| unsafe { *flow.get() });
        let is_counted = |flow: &Flow<A>| {
            flow.backend == backend
                && flow.service != CHECK_SERVICE
                && flow.direction == Direction::ToBackend as u8
                && flow.is_under_way()
        };
        flows.filter(is_counted).count() as i64
    }

    pub(crate) fn find(&self, table: Table, key: &FlowKey<A>) -> Option<Entry<'_, Flow<A>>> {
        let table = self.table(table).borrow();
        let place = NonNull::new(table.get(key)?.get())?;
        // SAFETY: entries are boxed, and removed ones are kept until the next packet.
        Some(unsafe { Entry::new(place) })
    }

    pub(crate) fn insert(
        &self,
        table: Table,
        key: &FlowKey<A>,
        flow: &Flow<A>,
    ) -> Result<(), InsertError> {
        let limit = match table {
            Table::Established => self.most_entries,
            Table::Embryonic => usize::MAX,
        };
        let mut table = self.table(table).borrow_mut();
        if table.contains_key(key) {
            return Err(InsertError::Exists);
        }
        if table.len() >= limit {
            return Err(InsertError::Full);
        }
        table.insert(*key, Box::new(UnsafeCell::new(*flow)));
        Ok(())
    }

    pub(crate) fn remove(&self, table: Table, key: &FlowKey<A>) {
        let removed = self.table(table).borrow_mut().remove(key);
        self.removed.borrow_mut().extend(removed);
    }
}

impl<A: Family> Clone for FamilyMemory<A>
where
    Flow<A>: Pod,
{
    fn clone(&self) -> Self {
        Self {
            services: self.services.clone(),
            established: copy(&self.established),
            embryonic: copy(&self.embryonic),
            fragments: self.fragments.clone(),
            clients: self.clients.clone(),
            sources: self.sources.clone(),
            replies: self.replies.clone(),
            resets: self.resets.clone(),
            removed: RefCell::default(),
            most_entries: self.most_entries,
            scratch: self.scratch.clone(),
        }
    }
}
