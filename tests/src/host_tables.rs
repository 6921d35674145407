//! The tables in memory, as the packet logic sees them.

use std::net::IpAddr;

use bytemuck::Zeroable as _;
use ipnet::IpNet;
use lb_common::{
    abi::{
        Access, AccessKey, Answer, Backend, Beat, CHECK_SERVICE, Client, ClientKey, Direction,
        Entry, Flow, FlowKey, Fragment, FragmentKey, LocalMac, Membership, Moment, Refusal,
        Service, ServiceKey, Settings, Slot, Station,
    },
    datapath::{
        FamilyTables, InsertError, ReplyRest, ReplyTraces, Table, Tables, TracePlace, TraceSet,
    },
    wire::{Ipv4Address, Ipv6Address, NetworkU16, NetworkU32},
};

use crate::host::Host;

/// What a jiffy takes here, in nanoseconds.
const JIFFY: u64 = 1 << 22;
/// What makes a beat of it that is a tick.
pub const BEAT_SHIFT: u32 = Beat::shift(JIFFY);

impl Tables for Host {
    fn now(&self) -> Moment {
        self.now.get()
    }

    fn beat(&self, settings: &Settings) -> Beat {
        Beat::of_jiffies(self.now.get().nanoseconds() / JIFFY, settings.beat_shift)
    }

    fn settings(&self) -> Option<Settings> {
        self.note_array();
        Some(self.world.settings)
    }

    fn ring_slot(&self, slot: u32) -> Option<Slot> {
        self.note_array();
        self.world.ring.get(slot as usize).copied()
    }

    fn port_sets(&self, port: NetworkU16) -> Membership {
        self.note_array();
        self.ports_in.of(port)
    }

    fn station(&self, place: u32) -> Option<&Station> {
        self.note_array();
        self.stations.get(place as usize)
    }

    fn traces(&self, set: u32) -> TraceSet {
        self.note_array();
        self.traces.borrow().get(&set).copied().unwrap_or_default()
    }

    fn confirmed_traces(&self, set: u32) -> TraceSet {
        self.traces(set)
    }

    fn set_trace(&self, set: u32, way: usize, word: u64) {
        self.note_array();
        self.traces.borrow_mut().entry(set).or_default()[way] = word;
    }

    fn nat_traces(&self, set: u32) -> TraceSet {
        self.note_array();
        self.nat_traces.borrow().get(&set).map_or_else(TraceSet::default, |[words, _]| *words)
    }

    fn confirmed_nat_traces(&self, set: u32) -> TraceSet {
        Tables::nat_traces(self, set)
    }

    fn nat_rest(&self, set: u32, way: usize) -> u64 {
        self.note_array();
        self.nat_traces.borrow().get(&set).map_or(0, |[_, rests]| rests[way])
    }

    fn set_nat_trace(&self, set: u32, way: usize, word: u64, rest: u64) {
        self.note_array();
        let mut sets = self.nat_traces.borrow_mut();
        let [words, rests] = sets.entry(set).or_default();
        (words[way], rests[way]) = (word, rest);
        drop(sets);
        if word != 0 {
            self.ipv4.reset_if_wanted();
            self.ipv6.reset_if_wanted();
        }
    }

    fn backend(&self, index: u32) -> Option<&Backend> {
        self.note_array();
        self.world.backends.get(index as usize - 1)
    }

    fn nat_source(&self, index: u32) -> Option<&[NetworkU32; 4]> {
        self.note_array();
        self.world.nat_sources.get(index as usize)
    }

    fn ports_word(&self, index: u32) -> Option<u64> {
        self.note_array();
        self.ports.borrow().get(index as usize).copied()
    }

    fn set_ports_word(&self, index: u32, word: u64) {
        self.note_array();
        self.ports.borrow_mut()[index as usize] = word;
    }

    fn take_ports(&self, index: u32, bits: u64) -> Option<u64> {
        self.note_array();
        let mut words = self.ports.borrow_mut();
        let word = words.get_mut(index as usize)?;
        let before = *word;
        *word &= !bits;
        Some(before)
    }

    fn give_ports(&self, index: u32, bits: u64) {
        self.note_array();
        self.ports.borrow_mut()[index as usize] |= bits;
    }

    fn refusal(&self, backend: u32) -> Refusal {
        self.note_array();
        self.refusals.borrow().get(&backend).copied().unwrap_or_default()
    }

    fn set_refusal(&self, backend: u32, refusal: Refusal) {
        self.note_array();
        self.refusals.borrow_mut().insert(backend, refusal);
    }

    fn load(&self, backend: u32) -> i64 {
        self.note_array();
        self.loads.borrow()[1].get(&backend).copied().unwrap_or(0)
    }

    fn service_load(&self, service: u32) -> i64 {
        self.note_array();
        self.loads.borrow()[0].get(&service).copied().unwrap_or(0)
    }

    fn add_load(&self, service: u32, backend: u32, number: i64) {
        // Of the service and of the backend.
        self.note_array();
        self.note_array();
        if service == CHECK_SERVICE {
            return;
        }
        let mut loads = self.loads.borrow_mut();
        *loads[0].entry(service).or_default() += number;
        *loads[1].entry(backend).or_default() += number;
    }

    fn count_answer(&self, backend: u32, answer: Answer) {
        self.note_array();
        let mut counters = self.counters.borrow_mut();
        counters[1].entry(backend).or_default().count_answer(answer);
    }

    fn take_turn(&self, service: u32) -> u64 {
        self.note_array();
        let mut counters = self.counters.borrow_mut();
        let counters = counters[0].entry(service).or_default();
        counters.turns += 1;
        counters.turns - 1
    }

    fn local_mac(&self, mac: &LocalMac) -> Option<u32> {
        self.note_hash();
        let known = self.world.local_macs.iter().find(|(known, _)| known == mac);
        known.map(|(_, longest)| *longest)
    }

    fn count_packet(&self, service: u32, backend: u32, direction: Direction, bytes: u64) {
        // Of the service and of the backend.
        self.note_array();
        self.note_array();
        self.count(service, backend, |counters| counters.count_packet(direction, bytes));
    }

    fn count_new_flow(&self, service: u32, backend: u32) {
        // Of the service and of the backend.
        self.note_array();
        self.note_array();
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
                self.note_hash();
                self.$memory.find(table, key)
            }

            fn insert(
                &self,
                table: Table,
                key: &FlowKey<$address>,
                flow: &Flow<$address>,
            ) -> Result<(), InsertError> {
                self.note_hash();
                self.$memory.insert(table, key, flow)
            }

            fn remove(&self, table: Table, key: &FlowKey<$address>) {
                self.note_hash();
                self.$memory.remove(table, key);
            }

            fn reply_traces(&self, set: u32) -> ReplyTraces {
                self.note_array();
                let replies = self.$memory.replies.borrow();
                std::array::from_fn(|way| replies.get(&(set, way)).map_or(0, |(word, _)| *word))
            }

            fn reply_rest(&self, set: u32, way: usize) -> ReplyRest<$address> {
                self.note_array();
                let replies = self.$memory.replies.borrow();
                replies.get(&(set, way)).map_or_else(ReplyRest::zeroed, |(_, rest)| *rest)
            }

            fn set_reply_trace(&self, set: u32, way: usize, word: u64, rest: &ReplyRest<$address>) {
                self.note_array();
                self.$memory.replies.borrow_mut().insert((set, way), (word, *rest));
                self.$memory.reset_if_wanted();
            }

            fn erase_reply_trace(&self, set: u32, way: usize) {
                self.note_array();
                self.$memory.replies.borrow_mut().remove(&(set, way));
            }

            fn erase_reply_traces(&self, place: TracePlace) {
                self.note_array();
                let mut replies = self.$memory.replies.borrow_mut();
                replies.retain(|(set, _), (word, _)| *set != place.set || !place.has(*word));
            }

            fn service(&self, key: &ServiceKey<$address>) -> Option<Service> {
                self.note_hash();
                self.$memory.services.get(key).copied()
            }

            fn access(&self, key: &AccessKey<$address>) -> Option<Access> {
                self.note_hash();
                let address: IpAddr = key.address.into();
                let matches = |(list, network, _): &&(u32, IpNet, Access)| {
                    *list == key.list && network.contains(&address)
                };
                let longest = self.world.access.iter().filter(matches);
                longest.max_by_key(|(_, network, _)| network.prefix_len()).map(|(.., said)| *said)
            }

            fn client(&self, key: &ClientKey<$address>) -> Option<Client> {
                self.note_hash();
                self.$memory.clients.borrow().get(key).copied()
            }

            fn remember_client(&self, key: &ClientKey<$address>, client: Client) {
                self.note_hash();
                self.$memory.clients.borrow_mut().insert(*key, client);
            }

            fn source_due(&self, source: $address) -> Option<u64> {
                self.note_hash();
                self.$memory.sources.borrow().get(&source).copied()
            }

            fn set_source_due(&self, source: $address, due: u64) {
                self.note_hash();
                self.$memory.sources.borrow_mut().insert(source, due);
            }

            fn fragment(&self, key: &FragmentKey<$address>) -> Option<Fragment> {
                self.note_hash();
                self.$memory.fragments.borrow().get(key).copied()
            }

            fn remember_fragment(&self, key: &FragmentKey<$address>, fragment: &Fragment) {
                self.note_hash();
                self.$memory.fragments.borrow_mut().insert(*key, *fragment);
            }
        }
    };
}

family_tables!(Ipv4Address, ipv4);
family_tables!(Ipv6Address, ipv6);
