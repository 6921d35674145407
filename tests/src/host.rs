//! The packet logic over in-memory tables.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

use bytemuck::Zeroable as _;
use lb_common::{
    abi::{CHECK_SERVICE, Counters, Moment, PortBits, Refusal, STATIONS, Station},
    datapath::{
        self, Action, Decision, ErrorScratch, Family, NatTraceSet, Note, Reason, Scratch, Stage,
        Table, TraceSet,
    },
    wire::{Ipv4Address, Ipv6Address},
};

pub use crate::host_tables::BEAT_SHIFT;
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

/// Look-ups of a packet in tables, also those that change them. Beside them, a program looks up its scratch memory, the
/// counter of its reason and the interface that a frame leaves by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LookUps {
    /// In hash tables.
    pub hashes: u32,
    /// In arrays.
    pub arrays: u32,
}

/// The tables, in memory.
#[derive(Clone)]
pub struct Host {
    /// What it was set up with; the rings may be changed.
    pub world: World,
    pub(crate) ipv4: FamilyMemory<Ipv4Address>,
    pub(crate) ipv6: FamilyMemory<Ipv6Address>,
    pub(crate) ports: RefCell<Vec<u64>>,
    pub(crate) traces: RefCell<HashMap<u32, TraceSet>>,
    pub(crate) nat_traces: RefCell<HashMap<u32, NatTraceSet>>,
    pub(crate) refusals: RefCell<HashMap<u32, Refusal>>,
    /// Connections under way by service, then by backend.
    pub loads: RefCell<[HashMap<u32, i64>; 2]>,
    /// The sets that ports are in, as it was set up.
    pub(crate) ports_in: PortBits,
    /// Our hardware addresses in their places, likewise.
    pub(crate) stations: Vec<Station>,
    pub(crate) now: Cell<Moment>,
    pub(crate) look_ups: Cell<LookUps>,
    /// Counts by service, then by backend.
    pub counters: RefCell<[HashMap<u32, Counters>; 2]>,
}

impl Host {
    /// Tables that hold what `world` says.
    pub fn new(world: &World) -> Self {
        let most_entries = world.flows as usize * 2;
        let mut stations = vec![Station::default(); STATIONS as usize];
        world.stations().into_iter().for_each(|(place, it)| stations[place as usize] = it);
        Self {
            world: world.clone(),
            ipv4: FamilyMemory::new(world.services_ipv4(), most_entries),
            ipv6: FamilyMemory::new(world.services_ipv6(), most_entries),
            ports: RefCell::new(world.port_words()),
            traces: RefCell::default(),
            nat_traces: RefCell::default(),
            refusals: RefCell::default(),
            loads: RefCell::default(),
            ports_in: world.ports(),
            stations,
            now: Cell::default(),
            look_ups: Cell::default(),
            counters: RefCell::default(),
        }
    }

    /// Runs one frame through the packet logic.
    pub fn run(&self, frame: &[u8]) -> Outcome {
        self.look_ups.take();
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
            Stage::Ipv6 => datapath::express::<Ipv6Address, _, _>(packet, self),
            Stage::LookUp => with_segment(packet, ipv4, |packet, scratch| {
                datapath::decide(packet, self, scratch)
            }),
            Stage::LookUpIpv6 => with_segment(packet, ipv6, |packet, scratch| {
                datapath::decide(packet, self, scratch)
            }),
            Stage::Icmp => datapath::process_icmp(packet, self, ipv4),
            Stage::Icmpv6 => datapath::process_icmp(packet, self, ipv6),
            Stage::TooBig => datapath::answer_too_big::<Ipv4Address, _>(packet, &note),
            Stage::TooBigIpv6 => datapath::answer_too_big::<Ipv6Address, _>(packet, &note),
            Stage::Tagged => datapath::process_tagged(packet),
            Stage::Ipv4 => datapath::express::<Ipv4Address, _, _>(packet, self),
            Stage::Fragment => datapath::process_fragment(packet, self, &mut ipv4.basic),
            Stage::FragmentIpv6 => datapath::process_fragment(packet, self, &mut ipv6.basic),
            Stage::Options => datapath::look_at_options(packet, &mut note),
            Stage::Open => with_segment(packet, ipv4, |packet, scratch| {
                datapath::open(packet, self, scratch, &note)
            }),
            Stage::OpenIpv6 => with_segment(packet, ipv6, |packet, scratch| {
                datapath::open(packet, self, scratch, &note)
            }),
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
        self.remove_entries();
        self.ipv4.replies.borrow_mut().clear();
        self.ipv6.replies.borrow_mut().clear();
        self.nat_traces.borrow_mut().clear();
    }

    /// Removes the entries of all flows, as nobody does who knows of their traces.
    pub fn remove_entries(&self) {
        for table in [Table::Established, Table::Embryonic] {
            self.ipv4.forget(table);
            self.ipv6.forget(table);
        }
    }

    /// From now on, every flow over IPv4 is reset by its backend whenever one leaves a trace, as by a packet on another CPU.
    pub fn reset_flows_when_traced(&self) {
        self.ipv4.resets.set(true);
    }

    /// How many traces of replies there are.
    pub fn reply_traces(&self) -> usize {
        self.ipv4.replies.borrow().len() + self.ipv6.replies.borrow().len()
    }

    /// Erases the traces of flows by direct return.
    pub fn forget_traces(&self) {
        self.traces.borrow_mut().clear();
    }

    /// How many traces there are of flows whose replies pass through us.
    pub fn nat_traces(&self) -> usize {
        let sets = self.nat_traces.borrow();
        sets.values().flat_map(|[words, _]| words).filter(|word| **word != 0).count()
    }

    /// Makes established flows older by so many ticks.
    pub fn age_flows(&self, ticks: u32) {
        self.ipv4.age(ticks);
        self.ipv6.age(ticks);
    }

    /// Sets the clock.
    pub fn set_now(&self, now: Moment) {
        self.now.set(now);
    }

    /// Look-ups of the packet before.
    pub fn look_ups(&self) -> LookUps {
        self.look_ups.get()
    }

    pub(crate) fn note_hash(&self) {
        let look_ups = self.look_ups.get();
        self.look_ups.set(LookUps { hashes: look_ups.hashes + 1, ..look_ups });
    }

    pub(crate) fn note_array(&self) {
        let look_ups = self.look_ups.get();
        self.look_ups.set(LookUps { arrays: look_ups.arrays + 1, ..look_ups });
    }

    pub(crate) fn count(&self, service: u32, backend: u32, change: impl Fn(&mut Counters)) {
        if service == CHECK_SERVICE {
            return;
        }
        let mut counters = self.counters.borrow_mut();
        change(counters[0].entry(service).or_default());
        change(counters[1].entry(backend).or_default());
    }
}

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
