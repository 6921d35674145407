//! The packet logic over in-memory tables.

use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::HashMap,
    ptr::NonNull,
};

use bytemuck::{Pod, Zeroable};
use lb_common::{
    abi::{
        Backend, CHECK_SERVICE, Counters, Direction, Entry, Flow, FlowKey, FlowState, Fragment,
        FragmentKey, LocalMac, Service, ServiceKey, Settings, Tick,
    },
    datapath::{
        self, Action, Decision, ErrorScratch, FamilyTables, InsertError, Note, Packet, Reason,
        Stage, Table, Tables,
    },
    wire::{Address, Ipv4Address, Ipv6Address, NetworkU32, VlanTags},
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
        let timeless = Flow { opened: Tick::default(), last_seen: Tick::default(), ..*flow };
        Self { state: flow.state, timeless: bytemuck::bytes_of(&timeless).to_vec() }
    }
}

/// Entries of flows by the bytes of their keys, whose lengths differ by family.
pub type Records = HashMap<Vec<u8>, Recorded>;

/// Boxed, so that entries stay in place while the table grows.
type FlowTable<A> = RefCell<HashMap<FlowKey<A>, Box<UnsafeCell<Flow<A>>>>>;

/// The tables of one address family.
struct FamilyMemory<A> {
    services: HashMap<ServiceKey<A>, Service>,
    established: FlowTable<A>,
    embryonic: FlowTable<A>,
    fragments: RefCell<HashMap<FragmentKey<A>, Fragment>>,
    /// Removed entries; the packet that removed them may still hold their place.
    removed: RefCell<Vec<Box<UnsafeCell<Flow<A>>>>>,
    most_entries: usize,
}

impl<A: Address> FamilyMemory<A>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    fn new(services: Vec<(ServiceKey<A>, Service)>, most_entries: usize) -> Self {
        Self {
            services: services.into_iter().collect(),
            established: RefCell::default(),
            embryonic: RefCell::default(),
            fragments: RefCell::default(),
            removed: RefCell::default(),
            most_entries,
        }
    }

    fn table(&self, table: Table) -> &FlowTable<A> {
        match table {
            Table::Established => &self.established,
            Table::Embryonic => &self.embryonic,
        }
    }

    fn record(&self, table: Table, records: &mut Records) {
        for (key, flow) in &*self.table(table).borrow() {
            // SAFETY: no packet is under way.
            let flow = unsafe { *flow.get() };
            records.insert(bytemuck::bytes_of(key).to_vec(), Recorded::new(&flow));
        }
    }

    fn find(&self, table: Table, key: &FlowKey<A>) -> Option<Entry<'_, Flow<A>>> {
        let table = self.table(table).borrow();
        let place = NonNull::new(table.get(key)?.get())?;
        // SAFETY: entries are boxed, and removed ones are kept until the next packet.
        Some(unsafe { Entry::new(place) })
    }

    fn insert(&self, table: Table, key: &FlowKey<A>, flow: &Flow<A>) -> Result<(), InsertError> {
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

    fn remove(&self, table: Table, key: &FlowKey<A>) {
        let removed = self.table(table).borrow_mut().remove(key);
        self.removed.borrow_mut().extend(removed);
    }
}

/// The tables, in memory.
pub struct Host {
    /// What it was set up with; the rings may be changed.
    pub world: World,
    ipv4: FamilyMemory<Ipv4Address>,
    ipv6: FamilyMemory<Ipv6Address>,
    cursors: RefCell<HashMap<u32, u32>>,
    now: Cell<Tick>,
    /// Counts by service, then by backend.
    pub counters: RefCell<[HashMap<u32, Counters>; 2]>,
}

impl Host {
    /// Tables that hold what `world` says.
    pub fn new(world: &World) -> Self {
        let most_entries = world.flows as usize * 2;
        Self {
            world: world.clone(),
            ipv4: FamilyMemory::new(world.services_ipv4(), most_entries),
            ipv6: FamilyMemory::new(world.services_ipv6(), most_entries),
            cursors: RefCell::default(),
            now: Cell::new(Tick::default()),
            counters: RefCell::default(),
        }
    }

    /// Runs one frame through the packet logic.
    pub fn run(&self, frame: &[u8]) -> Outcome {
        self.ipv4.removed.borrow_mut().clear();
        self.ipv6.removed.borrow_mut().clear();
        let mut packet =
            Frame { bytes: frame.to_vec(), tags: VlanTags::NONE, note: Note::zeroed() };
        let mut decision = datapath::process(&mut packet, self);
        let verdict = loop {
            match decision {
                Decision::Made(verdict) => break verdict,
                Decision::Left(stage) => {
                    let note = packet.note;
                    packet.tags = note.tags;
                    decision = self.stage(&mut packet, stage, note);
                }
            }
        };
        let action = verdict.reason.action();
        Outcome {
            action,
            redirected: action == Action::Transmit && verdict.egress != INGRESS,
            reason: verdict.reason,
            frame: packet.bytes,
        }
    }

    fn stage(&self, packet: &mut Frame, stage: Stage, mut note: Note) -> Decision {
        let ipv4 = &mut ErrorScratch::<Ipv4Address>::zeroed();
        let ipv6 = &mut ErrorScratch::<Ipv6Address>::zeroed();
        match stage {
            Stage::Ipv6 => match datapath::read(packet, &mut ipv6.basic) {
                Ok(()) => datapath::decide(packet, self, &mut ipv6.basic),
                Err(decision) => decision,
            },
            Stage::Icmp => datapath::process_icmp(packet, self, ipv4),
            Stage::Icmpv6 => datapath::process_icmp(packet, self, ipv6),
            Stage::TooBig => datapath::answer_too_big::<Ipv4Address, _>(packet, &note),
            Stage::TooBigIpv6 => datapath::answer_too_big::<Ipv6Address, _>(packet, &note),
            Stage::Tagged => datapath::process_tagged(packet),
            Stage::Ipv4 => datapath::process_ipv4(packet, self),
            Stage::Fragment => datapath::process_fragment(packet, self, &mut ipv4.basic),
            Stage::FragmentIpv6 => datapath::process_fragment(packet, self, &mut ipv6.basic),
            Stage::Syn => datapath::look_at_syn(packet, &mut note),
            Stage::Finish => Decision::Made(datapath::finish(packet, &note)),
        }
    }

    /// The entries of a table, of both families.
    pub fn flows(&self, table: Table) -> Records {
        let mut records = Records::new();
        self.ipv4.record(table, &mut records);
        self.ipv6.record(table, &mut records);
        records
    }

    /// Sets the clock.
    pub fn set_now(&self, now: Tick) {
        self.now.set(now);
    }

    fn count(&self, service: u32, backend: u32, change: impl Fn(&mut Counters)) {
        if service == CHECK_SERVICE {
            return;
        }
        let mut counters = self.counters.borrow_mut();
        change(counters[0].entry(service).or_default());
        change(counters[1].entry(backend).or_default());
    }
}

impl Tables for Host {
    fn now(&self) -> Tick {
        self.now.get()
    }

    fn settings(&self) -> Option<Settings> {
        Some(self.world.settings)
    }

    fn ring_slot(&self, slot: u32) -> Option<u32> {
        self.world.ring.get(slot as usize).copied()
    }

    fn backend(&self, index: u32) -> Option<&Backend> {
        self.world.backends.get(index as usize - 1)
    }

    fn nat_source(&self, index: u32) -> Option<[NetworkU32; 4]> {
        self.world.nat_sources.get(index as usize).copied()
    }

    fn next_nat_cursor(&self, backend: u32) -> Option<u32> {
        let mut cursors = self.cursors.borrow_mut();
        let cursor = cursors.entry(backend).or_default();
        *cursor += 1;
        Some(*cursor - 1)
    }

    fn local_mac(&self, mac: &LocalMac) -> Option<u32> {
        let known = self.world.local_macs.iter().find(|(known, _)| known == mac);
        known.map(|(_, longest)| *longest)
    }

    fn count_packet(&self, service: u32, backend: u32, direction: Direction, bytes: u64) {
        self.count(service, backend, |counters| counters.count_packet(direction, bytes));
    }

    fn count_new_flow(&self, service: u32, backend: u32) {
        self.count(service, backend, |counters| counters.new_flows += 1);
    }
}

macro_rules! family_tables {
    ($address:ty, $memory:ident) => {
        impl FamilyTables<$address> for Host {
            fn find(
                &self,
                table: Table,
                key: &FlowKey<$address>,
            ) -> Option<Entry<'_, Flow<$address>>> {
                self.$memory.find(table, key)
            }

            fn insert(
                &self,
                table: Table,
                key: &FlowKey<$address>,
                flow: &Flow<$address>,
            ) -> Result<(), InsertError> {
                self.$memory.insert(table, key, flow)
            }

            fn remove(&self, table: Table, key: &FlowKey<$address>) {
                self.$memory.remove(table, key);
            }

            fn service(&self, key: &ServiceKey<$address>) -> Option<Service> {
                self.$memory.services.get(key).copied()
            }

            fn fragment(&self, key: &FragmentKey<$address>) -> Option<Fragment> {
                self.$memory.fragments.borrow().get(key).copied()
            }

            fn remember_fragment(&self, key: &FragmentKey<$address>, fragment: &Fragment) {
                self.$memory.fragments.borrow_mut().insert(*key, *fragment);
            }
        }
    };
}

family_tables!(Ipv4Address, ipv4);
family_tables!(Ipv6Address, ipv6);

struct Frame {
    bytes: Vec<u8>,
    tags: VlanTags,
    note: Note,
}

impl Packet for Frame {
    fn read<T: Pod>(&self, offset: usize) -> Option<T> {
        let bytes = self.bytes.get(offset..offset.checked_add(size_of::<T>())?)?;
        Some(bytemuck::pod_read_unaligned(bytes))
    }

    fn write<T: Pod>(&mut self, offset: usize, value: T) -> Option<()> {
        let end = offset.checked_add(size_of::<T>())?;
        self.bytes.get_mut(offset..end)?.copy_from_slice(bytemuck::bytes_of(&value));
        Some(())
    }

    fn grow<const BYTES: usize>(&mut self) -> Option<()> {
        self.bytes.splice(0..0, [0; BYTES]);
        Some(())
    }

    fn shrink<const BYTES: usize>(&mut self) -> Option<()> {
        self.bytes.len().checked_sub(BYTES)?;
        self.bytes.drain(..BYTES);
        Some(())
    }

    fn truncate(&mut self, length: usize) -> Option<()> {
        self.bytes.len().checked_sub(length)?;
        self.bytes.truncate(length);
        Some(())
    }

    fn length(&self) -> usize {
        self.bytes.len()
    }

    fn ingress(&self) -> u32 {
        INGRESS
    }

    fn tags(&self) -> VlanTags {
        self.tags
    }

    fn leave(&mut self, note: Note) {
        self.note = note;
    }
}
