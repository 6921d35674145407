//! The packet logic over in-memory tables.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use bytemuck::Zeroable as _;
use ipnet::IpNet;
use lb_common::{
    abi::{
        Access, AccessKey, Answer, Backend, CHECK_SERVICE, Client, ClientKey, Counters, Direction,
        Entry, Flow, FlowKey, Fragment, FragmentKey, LocalMac, Moment, Refusal, Service,
        ServiceKey, Settings, Slot,
    },
    datapath::{
        self, Action, Decision, ErrorScratch, Family, FamilyTables, InsertError, Note, Reason,
        Scratch, Stage, Table, Tables, Traces,
    },
    wire::{Ipv4Address, Ipv6Address, NetworkU32},
};

use crate::{
    host_frame::Frame,
    memory::{FamilyMemory, Records},
    world::{INGRESS, World},
};

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

/// The tables, in memory.
#[derive(Clone)]
pub struct Host {
    /// What it was set up with; the rings may be changed.
    pub world: World,
    ipv4: FamilyMemory<Ipv4Address>,
    ipv6: FamilyMemory<Ipv6Address>,
    ports: RefCell<Vec<u64>>,
    /// Slots of rings that are unsettled.
    pub unsettled: RefCell<BTreeSet<u32>>,
    traces: RefCell<HashMap<u32, Traces>>,
    refusals: RefCell<HashMap<u32, Refusal>>,
    /// Connections under way by service, then by backend.
    pub loads: RefCell<[HashMap<u32, i64>; 2]>,
    now: Cell<Moment>,
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
            ports: RefCell::new(world.port_words()),
            unsettled: RefCell::default(),
            traces: RefCell::default(),
            refusals: RefCell::default(),
            loads: RefCell::default(),
            now: Cell::default(),
            counters: RefCell::default(),
        }
    }

    /// Runs one frame through the packet logic.
    pub fn run(&self, frame: &[u8]) -> Outcome {
        self.ipv4.removed.borrow_mut().clear();
        self.ipv6.removed.borrow_mut().clear();
        let mut packet = Frame::new(frame);
        let mut decision = match datapath::sort(&mut packet) {
            Ok(()) => self.stage(&mut packet, Stage::Ipv4, Note::zeroed()),
            Err(decision) => decision,
        };
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
        let ipv4 = &mut *self.ipv4.scratch.borrow_mut();
        let ipv6 = &mut *self.ipv6.scratch.borrow_mut();
        match stage {
            Stage::Ipv6 => with_segment(packet, ipv6, |packet, scratch| {
                datapath::decide(packet, self, scratch)
            }),
            Stage::Icmp => datapath::process_icmp(packet, self, ipv4),
            Stage::Icmpv6 => datapath::process_icmp(packet, self, ipv6),
            Stage::TooBig => datapath::answer_too_big::<Ipv4Address, _>(packet, &note),
            Stage::TooBigIpv6 => datapath::answer_too_big::<Ipv6Address, _>(packet, &note),
            Stage::Tagged => datapath::process_tagged(packet),
            Stage::Ipv4 => with_segment(packet, ipv4, |packet, scratch| {
                datapath::decide(packet, self, scratch)
            }),
            Stage::Fragment => datapath::process_fragment(packet, self, &mut ipv4.basic),
            Stage::FragmentIpv6 => datapath::process_fragment(packet, self, &mut ipv6.basic),
            Stage::Options => datapath::look_at_options(packet, &mut note),
            Stage::Open => {
                with_segment(packet, ipv4, |packet, scratch| datapath::open(packet, self, scratch))
            }
            Stage::OpenIpv6 => {
                with_segment(packet, ipv6, |packet, scratch| datapath::open(packet, self, scratch))
            }
            Stage::Record => datapath::record(packet, self, &mut ipv4.basic, &note),
            Stage::RecordIpv6 => datapath::record(packet, self, &mut ipv6.basic, &note),
            Stage::Trouble => with_segment(packet, ipv4, |packet, scratch| {
                datapath::handle_trouble(packet, self, scratch)
            }),
            Stage::TroubleIpv6 => with_segment(packet, ipv6, |packet, scratch| {
                datapath::handle_trouble(packet, self, scratch)
            }),
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

    /// Flows in the tables that count as a backend's connections.
    pub fn flows_under_way(&self, backend: u32) -> i64 {
        [Table::Established, Table::Embryonic]
            .map(|table| self.ipv4.under_way(table, backend) + self.ipv6.under_way(table, backend))
            .iter()
            .sum()
    }

    /// Forgets all flows.
    pub fn forget_flows(&self) {
        for table in [Table::Established, Table::Embryonic] {
            self.ipv4.forget(table);
            self.ipv6.forget(table);
        }
    }

    /// Sets the clock.
    pub fn set_now(&self, now: Moment) {
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
    fn now(&self) -> Moment {
        self.now.get()
    }

    fn settings(&self) -> Option<Settings> {
        Some(self.world.settings)
    }

    fn ring_slot(&self, slot: u32) -> Option<Slot> {
        let found = Slot::new(*self.world.ring.get(slot as usize)?);
        let is_settled = !self.unsettled.borrow().contains(&slot);
        Some(if is_settled { found } else { found.unsettled() })
    }

    fn unsettle(&self, slot: u32) {
        self.unsettled.borrow_mut().insert(slot);
    }

    fn is_direct_port(&self, port: u16) -> bool {
        self.world.direct_ports().has(port)
    }

    fn is_station(&self, mac: &LocalMac) -> bool {
        self.world.local_macs.iter().any(|(known, _)| known == mac)
    }

    fn traces(&self, place: u32) -> Traces {
        self.traces.borrow().get(&place).copied().unwrap_or_default()
    }

    fn set_traces(&self, place: u32, traces: Traces) {
        self.traces.borrow_mut().insert(place, traces);
    }

    fn backend(&self, index: u32) -> Option<&Backend> {
        self.world.backends.get(index as usize - 1)
    }

    fn nat_source(&self, index: u32) -> Option<[NetworkU32; 4]> {
        self.world.nat_sources.get(index as usize).copied()
    }

    fn ports_word(&self, index: u32) -> Option<u64> {
        self.ports.borrow().get(index as usize).copied()
    }

    fn set_ports_word(&self, index: u32, word: u64) {
        self.ports.borrow_mut()[index as usize] = word;
    }

    fn take_ports(&self, index: u32, bits: u64) -> Option<u64> {
        let mut words = self.ports.borrow_mut();
        let word = words.get_mut(index as usize)?;
        let before = *word;
        *word &= !bits;
        Some(before)
    }

    fn give_ports(&self, index: u32, bits: u64) {
        self.ports.borrow_mut()[index as usize] |= bits;
    }

    fn refusal(&self, backend: u32) -> Refusal {
        self.refusals.borrow().get(&backend).copied().unwrap_or_default()
    }

    fn set_refusal(&self, backend: u32, refusal: Refusal) {
        self.refusals.borrow_mut().insert(backend, refusal);
    }

    fn load(&self, backend: u32) -> i64 {
        self.loads.borrow()[1].get(&backend).copied().unwrap_or(0)
    }

    fn service_load(&self, service: u32) -> i64 {
        self.loads.borrow()[0].get(&service).copied().unwrap_or(0)
    }

    fn add_load(&self, service: u32, backend: u32, number: i64) {
        if service == CHECK_SERVICE {
            return;
        }
        let mut loads = self.loads.borrow_mut();
        *loads[0].entry(service).or_default() += number;
        *loads[1].entry(backend).or_default() += number;
    }

    fn count_answer(&self, backend: u32, answer: Answer) {
        let mut counters = self.counters.borrow_mut();
        counters[1].entry(backend).or_default().count_answer(answer);
    }

    fn take_turn(&self, service: u32) -> u64 {
        let mut counters = self.counters.borrow_mut();
        let counters = counters[0].entry(service).or_default();
        counters.turns += 1;
        counters.turns - 1
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

            fn access(&self, key: &AccessKey<$address>) -> Option<Access> {
                let address: IpAddr = key.address.into();
                let matches = |(list, network, _): &&(u32, IpNet, Access)| {
                    *list == key.list && network.contains(&address)
                };
                let longest = self.world.access.iter().filter(matches);
                longest.max_by_key(|(_, network, _)| network.prefix_len()).map(|(.., said)| *said)
            }

            fn client(&self, key: &ClientKey<$address>) -> Option<Client> {
                self.$memory.clients.borrow().get(key).copied()
            }

            fn remember_client(&self, key: &ClientKey<$address>, client: Client) {
                self.$memory.clients.borrow_mut().insert(*key, client);
            }

            fn source_due(&self, source: $address) -> Option<u64> {
                self.$memory.sources.borrow().get(&source).copied()
            }

            fn set_source_due(&self, source: $address, due: u64) {
                self.$memory.sources.borrow_mut().insert(source, due);
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

/// Reads a frame's headers, and decides about it.
fn with_segment<A: Family>(
    packet: &mut Frame,
    scratch: &mut ErrorScratch<A>,
    decide: impl FnOnce(&mut Frame, &mut Scratch<A>) -> Decision,
) -> Decision {
    match datapath::read(packet, &mut scratch.basic) {
        Ok(()) => decide(packet, &mut scratch.basic),
        Err(decision) => decision,
    }
}
