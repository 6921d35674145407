//! The packet logic over in-memory tables.

use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::HashMap,
    ptr::NonNull,
};

use bytemuck::Pod;
use lb_common::{
    abi::{
        Backend, Counters, Direction, Entry, Flow, FlowKey, LocalMac, Service, ServiceKey,
        Settings, Tick,
    },
    datapath::{self, Action, InsertError, Packet, Reason, Table, Tables},
    wire::{Ipv4Address, NetworkU32},
};

use crate::world::{INGRESS, World};

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What is done with it.
    pub action: Action,
    /// Whether it leaves by another interface than it came in on.
    pub redirected: bool,
    /// Why.
    pub reason: Reason,
    /// Its bytes afterwards.
    pub frame: Vec<u8>,
}

/// A flow's key, as far as the tests know it.
pub type Key = FlowKey<Ipv4Address>;
/// A flow.
pub type Value = Flow<Ipv4Address>;

/// Boxed, so that entries stay in place while the table grows.
type FlowTable = RefCell<HashMap<Key, Box<UnsafeCell<Value>>>>;

/// The tables, in memory.
pub struct Host {
    /// What it was set up with; the rings may be changed.
    pub world: World,
    established: FlowTable,
    embryonic: FlowTable,
    /// Removed entries; the packet that removed them may still hold their place.
    #[expect(clippy::vec_box, reason = "entries must stay where they are")]
    removed: RefCell<Vec<Box<UnsafeCell<Value>>>>,
    cursors: RefCell<HashMap<u32, u32>>,
    now: Cell<Tick>,
    /// Counts by service, then by backend.
    pub counters: RefCell<[HashMap<u32, Counters>; 2]>,
}

impl Host {
    /// Tables that hold what `world` says.
    pub fn new(world: &World) -> Self {
        Self {
            world: world.clone(),
            established: RefCell::default(),
            embryonic: RefCell::default(),
            removed: RefCell::default(),
            cursors: RefCell::default(),
            now: Cell::new(Tick::default()),
            counters: RefCell::default(),
        }
    }

    /// Runs one frame through the packet logic.
    pub fn run(&self, frame: &[u8]) -> Outcome {
        self.removed.borrow_mut().clear();
        let mut packet = Frame(frame.to_vec());
        let verdict = datapath::process(&mut packet, self);
        let action = verdict.reason.action();
        Outcome {
            action,
            redirected: action == Action::Transmit && verdict.egress != INGRESS,
            reason: verdict.reason,
            frame: packet.0,
        }
    }

    /// The entries of a table.
    pub fn flows(&self, table: Table) -> HashMap<Key, Value> {
        self.table(table)
            .borrow()
            .iter()
            // SAFETY: no packet is under way.
            .map(|(key, value)| (*key, unsafe { *value.get() }))
            .collect()
    }

    /// Sets the clock.
    pub fn set_now(&self, now: Tick) {
        self.now.set(now);
    }

    fn table(&self, table: Table) -> &FlowTable {
        match table {
            Table::Established => &self.established,
            Table::Embryonic => &self.embryonic,
        }
    }

    fn count(&self, service: u32, backend: u32, change: impl Fn(&mut Counters)) {
        let mut counters = self.counters.borrow_mut();
        change(counters[0].entry(service).or_default());
        change(counters[1].entry(backend).or_default());
    }
}

impl Tables<Ipv4Address> for Host {
    fn now(&self) -> Tick {
        self.now.get()
    }

    fn settings(&self) -> Option<Settings> {
        Some(self.world.settings)
    }

    fn find(&self, table: Table, key: &Key) -> Option<Entry<'_, Value>> {
        let table = self.table(table).borrow();
        let place = NonNull::new(table.get(key)?.get())?;
        // SAFETY: entries are boxed, and removed ones are kept until the next packet.
        Some(unsafe { Entry::new(place) })
    }

    fn insert(&self, table: Table, key: &Key, flow: &Value) -> Result<(), InsertError> {
        let limit = match table {
            Table::Established => self.world.flows as usize * 2,
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

    fn remove(&self, table: Table, key: &Key) {
        let removed = self.table(table).borrow_mut().remove(key);
        self.removed.borrow_mut().extend(removed);
    }

    fn service(&self, key: &ServiceKey<Ipv4Address>) -> Option<Service> {
        self.world.services.iter().find(|(candidate, _)| candidate == key).map(|(_, value)| *value)
    }

    fn ring_slot(&self, slot: u32) -> Option<u32> {
        self.world.ring.get(slot as usize).copied()
    }

    fn backend(&self, index: u32) -> Option<Backend> {
        self.world.backends.get(index as usize - 1).copied()
    }

    fn nat_source(&self, index: u32) -> Option<[NetworkU32; 4]> {
        self.world.nat_sources.get(index as usize).map(|address| address.words())
    }

    fn next_nat_cursor(&self, backend: u32) -> Option<u32> {
        let mut cursors = self.cursors.borrow_mut();
        let cursor = cursors.entry(backend).or_default();
        *cursor += 1;
        Some(*cursor - 1)
    }

    fn is_local_mac(&self, mac: &LocalMac) -> bool {
        self.world.local_macs.contains(mac)
    }

    fn count_packet(&self, service: u32, backend: u32, direction: Direction, bytes: u64) {
        self.count(service, backend, |counters| counters.count_packet(direction, bytes));
    }

    fn count_new_flow(&self, service: u32, backend: u32) {
        self.count(service, backend, |counters| counters.new_flows += 1);
    }
}

struct Frame(Vec<u8>);

impl Packet for Frame {
    fn read<T: Pod>(&self, offset: usize) -> Option<T> {
        let bytes = self.0.get(offset..offset.checked_add(size_of::<T>())?)?;
        Some(bytemuck::pod_read_unaligned(bytes))
    }

    fn write<T: Pod>(&mut self, offset: usize, value: T) -> Option<()> {
        let end = offset.checked_add(size_of::<T>())?;
        self.0.get_mut(offset..end)?.copy_from_slice(bytemuck::bytes_of(&value));
        Some(())
    }

    fn grow<const BYTES: usize>(&mut self) -> Option<()> {
        self.0.splice(0..0, [0; BYTES]);
        Some(())
    }

    fn length(&self) -> usize {
        self.0.len()
    }

    fn ingress(&self) -> u32 {
        INGRESS
    }
}
