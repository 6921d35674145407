//! The maps and the clock as the packet logic sees them.

use core::{intrinsics, ptr::NonNull};

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns},
    maps::lpm_trie::Key,
};
use lb_common::{
    abi::{
        Access, AccessKey, Answer, Backend, Beat, Client, ClientKey, Direction, Entry, Flow,
        FlowKey, Fragment, FragmentKey, LocalMac, Membership, Moment, Refusal, Service, ServiceKey,
        Settings, Slot, Station,
    },
    datapath::{
        FamilyTables, InsertError, NatTraceSet, ReplyRest, ReplyTraces, TRACE_WAYS, Table, Tables,
        TracePlace, TraceSet,
    },
    wire::{Ipv4Address, Ipv6Address, NetworkU16, NetworkU32},
};

use crate::{
    maps,
    places::{
        add, erase_replies, erase_reply, exchange, read_confirmed_set, read_load, read_rest,
        read_set, ring_place, update, write_reply,
    },
};

/// The pinned maps.
pub(crate) struct MapTables;

const EEXIST: i32 = 17;

impl Tables for MapTables {
    #[inline(always)]
    fn now(&self) -> Moment {
        // SAFETY: the helper takes nothing and can't fail. In Linux since 5.11 (commit
        // d05512618056).
        Moment::from_nanoseconds(unsafe { bpf_ktime_get_coarse_ns() })
    }

    #[inline(always)]
    fn beat(&self, settings: &Settings) -> Beat {
        // SAFETY: the helper takes nothing and can't fail. In Linux since 5.6 (commit 5576b991e9c1); where programs are compiled, as
        // they are by default, it is a load.
        Beat::of_jiffies(unsafe { bpf_jiffies64() }, settings.beat_shift)
    }

    #[inline(always)]
    fn settings(&self) -> Option<Settings> {
        maps::SETTINGS.get(0).copied()
    }

    #[inline(always)]
    fn ring_slot(&self, slot: u32) -> Option<Slot> {
        // SAFETY: the slot is valid and aligned.
        ring_place(slot).map(|place| unsafe { place.read_volatile() })
    }

    #[inline(always)]
    fn port_sets(&self, port: NetworkU16) -> Membership {
        maps::PORT_SETS.get(0).map_or(Membership::default(), |ports| ports.of(port))
    }

    #[inline(always)]
    fn station(&self, place: u32) -> Option<&Station> {
        maps::STATIONS.get(place)
    }

    #[inline(always)]
    fn traces(&self, set: u32) -> TraceSet {
        read_set(maps::TRACES.get_ptr(set))
    }

    #[inline(always)]
    fn confirmed_traces(&self, set: u32) -> TraceSet {
        read_confirmed_set(maps::TRACES.get_ptr_mut(set))
    }

    #[inline(always)]
    fn set_trace(&self, set: u32, way: usize, word: u64) {
        if let Some(words) = maps::TRACES.get_ptr_mut(set) {
            // SAFETY: as above; it is one of the words.
            unsafe { exchange(words.cast::<u64>().add(way % TRACE_WAYS), word) };
        }
    }

    #[inline(always)]
    fn nat_traces(&self, set: u32) -> TraceSet {
        read_set(maps::NAT_TRACES.get_ptr(set))
    }

    #[inline(always)]
    fn confirmed_nat_traces(&self, set: u32) -> TraceSet {
        read_confirmed_set(maps::NAT_TRACES.get_ptr_mut(set))
    }

    #[inline(always)]
    fn nat_rest(&self, set: u32, way: usize) -> u64 {
        // SAFETY: as above; it is one of the second half.
        let read = |words: *const NatTraceSet| unsafe {
            words.cast::<u64>().add(TRACE_WAYS + way % TRACE_WAYS).read_volatile()
        };
        maps::NAT_TRACES.get_ptr(set).map_or(0, read)
    }

    #[inline(always)]
    fn set_nat_trace(&self, set: u32, way: usize, word: u64, rest: u64) {
        if let Some(words) = maps::NAT_TRACES.get_ptr_mut(set) {
            // SAFETY: as above; both are of the set.
            unsafe {
                let place = words.cast::<u64>().add(way % TRACE_WAYS);
                place.add(TRACE_WAYS).write_volatile(rest);
                exchange(place, word);
            }
        }
    }

    #[inline(always)]
    fn backend(&self, index: u32) -> Option<&Backend> {
        maps::BACKENDS.get(index)
    }

    #[inline(always)]
    fn nat_source(&self, index: u32) -> Option<&[NetworkU32; 4]> {
        maps::NAT_SOURCES.get(index)
    }

    #[inline(always)]
    fn ports_word(&self, index: u32) -> Option<u64> {
        // SAFETY: the map's value is valid and aligned.
        maps::NAT_PORTS.get_ptr(index).map(|word| unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn set_ports_word(&self, index: u32, word: u64) {
        if let Some(place) = maps::NAT_PORTS.get_ptr_mut(index) {
            // SAFETY: as above.
            unsafe { place.write_volatile(word) };
        }
    }

    #[inline(always)]
    fn take_ports(&self, index: u32, bits: u64) -> Option<u64> {
        let word = maps::NAT_PORTS.get_ptr_mut(index)?;
        // SAFETY: as above. Atomic operations that fetch are in Linux since 5.12 (commits 5ca419f2864a
        // and 981f94c3e921).
        Some(unsafe {
            intrinsics::atomic_and::<u64, u64, { intrinsics::AtomicOrdering::SeqCst }>(word, !bits)
        })
    }

    #[inline(always)]
    fn give_ports(&self, index: u32, bits: u64) {
        if let Some(word) = maps::NAT_PORTS.get_ptr_mut(index) {
            // SAFETY: as above.
            unsafe {
                intrinsics::atomic_or::<u64, u64, { intrinsics::AtomicOrdering::SeqCst }>(
                    word, bits,
                );
            }
        }
    }

    #[inline(always)]
    fn refusal(&self, backend: u32) -> Refusal {
        // SAFETY: as above.
        let read = |refusal: *const Refusal| unsafe { refusal.read_volatile() };
        maps::REFUSALS.get_ptr(backend).map_or(Refusal::default(), read)
    }

    #[inline(always)]
    fn set_refusal(&self, backend: u32, refusal: Refusal) {
        if let Some(place) = maps::REFUSALS.get_ptr_mut(backend) {
            // SAFETY: as above.
            unsafe { place.write_volatile(refusal) };
        }
    }

    #[inline(always)]
    fn load(&self, backend: u32) -> i64 {
        read_load(maps::LOADS.get_ptr(backend))
    }

    #[inline(always)]
    fn service_load(&self, service: u32) -> i64 {
        read_load(maps::SERVICE_LOADS.get_ptr(service))
    }

    #[inline(always)]
    fn add_load(&self, service: u32, backend: u32, number: i64) {
        let Some(load) = maps::SERVICE_LOADS.get_ptr_mut(service) else { return };
        // SAFETY: as above.
        unsafe { add(load, number) };
        if let Some(load) = maps::LOADS.get_ptr_mut(backend) {
            // SAFETY: as above.
            unsafe { add(load, number) };
        }
    }

    #[inline(always)]
    fn count_answer(&self, backend: u32, answer: Answer) {
        update(maps::BACKEND_COUNTERS.get_ptr_mut(backend), |counters| {
            counters.count_answer(answer);
        });
    }

    #[inline(always)]
    fn take_turn(&self, service: u32) -> u64 {
        let mut turn = 0;
        update(maps::SERVICE_COUNTERS.get_ptr_mut(service), |counters| {
            turn = counters.turns;
            counters.turns += 1;
        });
        turn
    }

    #[inline(always)]
    fn local_mac(&self, mac: &LocalMac) -> Option<u32> {
        // SAFETY: the map isn't pre-allocated, so a value stays what it is while it's read.
        unsafe { maps::LOCAL_MACS.get(mac) }.copied()
    }

    #[inline(always)]
    fn count_packet(&self, service: u32, backend: u32, direction: Direction, bytes: u64) {
        update(maps::SERVICE_COUNTERS.get_ptr_mut(service), |counters| {
            counters.count_packet(direction, bytes);
            update(maps::BACKEND_COUNTERS.get_ptr_mut(backend), |counters| {
                counters.count_packet(direction, bytes);
            });
        });
    }

    #[inline(always)]
    fn count_new_flow(&self, service: u32, backend: u32) {
        update(maps::SERVICE_COUNTERS.get_ptr_mut(service), |counters| counters.new_flows += 1);
        update(maps::BACKEND_COUNTERS.get_ptr_mut(backend), |counters| counters.new_flows += 1);
    }
}

macro_rules! family_tables {
    ($address:ty, $services:ident, $flows:ident, $embryonic:ident,
     $fragments:ident, $access:ident, $clients:ident, $sources:ident, $replies:ident) => {
        impl FamilyTables<$address> for MapTables {
            #[inline(always)]
            fn find(
                &self,
                table: Table,
                key: &FlowKey<$address>,
            ) -> Option<Entry<'_, Flow<$address>>> {
                let place = match table {
                    Table::Established => maps::$flows.get_ptr_mut(key),
                    Table::Embryonic => maps::$embryonic.get_ptr_mut(key),
                };
                // SAFETY: the kernel keeps a map's value in place while the program runs.
                NonNull::new(place?).map(|place| unsafe { Entry::new(place) })
            }

            #[inline(always)]
            fn insert(
                &self,
                table: Table,
                key: &FlowKey<$address>,
                flow: &Flow<$address>,
            ) -> Result<(), InsertError> {
                let flags = u64::from(BPF_NOEXIST);
                match table {
                    Table::Established => maps::$flows.insert(key, flow, flags),
                    Table::Embryonic => maps::$embryonic.insert(key, flow, flags),
                }
                .map_err(|error| {
                    if error == -EEXIST { InsertError::Exists } else { InsertError::Full }
                })
            }

            #[inline(always)]
            fn remove(&self, table: Table, key: &FlowKey<$address>) {
                // An entry that isn't there is as good as removed.
                let _: Result<(), i32> = match table {
                    Table::Established => maps::$flows.remove(key),
                    Table::Embryonic => maps::$embryonic.remove(key),
                };
            }

            #[inline(always)]
            fn reply_traces(&self, set: u32) -> ReplyTraces {
                read_set(maps::$replies.get_ptr(set))
            }

            #[inline(always)]
            fn reply_rest(&self, set: u32, way: usize) -> ReplyRest<$address> {
                read_rest(maps::$replies.get_ptr(set), way)
            }

            #[inline(always)]
            fn set_reply_trace(&self, set: u32, way: usize, word: u64, rest: &ReplyRest<$address>) {
                let set = maps::$replies.get_ptr_mut(set);
                write_reply(set, way, word, rest);
            }

            #[inline(always)]
            fn erase_reply_trace(&self, set: u32, way: usize) {
                erase_reply(maps::$replies.get_ptr_mut(set), way);
            }

            #[inline(always)]
            fn erase_reply_traces(&self, place: TracePlace) {
                erase_replies(maps::$replies.get_ptr_mut(place.set), place);
            }

            #[inline(always)]
            fn service(&self, key: &ServiceKey<$address>) -> Option<Service> {
                // SAFETY: the map isn't pre-allocated, so a value stays what it is while it's read.
                unsafe { maps::$services.get(key) }.copied()
            }

            #[inline(always)]
            fn access(&self, key: &AccessKey<$address>) -> Option<Access> {
                let bits = (size_of::<AccessKey<$address>>() * 8) as u32;
                maps::$access.get(Key::new(bits, *key)).copied()
            }

            #[inline(always)]
            fn client(&self, key: &ClientKey<$address>) -> Option<Client> {
                let client = maps::$clients.get_ptr(key)?;
                // SAFETY: the kernel keeps a map's value in place while the program runs.
                Some(unsafe { client.read() })
            }

            #[inline(always)]
            fn remember_client(&self, key: &ClientKey<$address>, client: Client) {
                // The least recently used make room; whoever isn't remembered keeps to the ring.
                let _: Result<(), i32> = maps::$clients.insert(key, client, 0);
            }

            #[inline(always)]
            fn source_due(&self, source: $address) -> Option<u64> {
                let due = maps::$sources.get_ptr(source)?;
                // SAFETY: the kernel keeps a map's value in place while the program runs.
                Some(unsafe { due.read_volatile() })
            }

            #[inline(always)]
            fn set_source_due(&self, source: $address, due: u64) {
                // The least recently used make room, which have been silent the longest.
                let _: Result<(), i32> = maps::$sources.insert(source, due, 0);
            }

            #[inline(always)]
            fn fragment(&self, key: &FragmentKey<$address>) -> Option<Fragment> {
                let fragment = maps::$fragments.get_ptr(key)?;
                // SAFETY: the kernel keeps a map's value in place while the program runs. One that is
                // given to another datagram meanwhile is no worse than one that is found wrongly.
                Some(unsafe { fragment.read() })
            }

            #[inline(always)]
            fn remember_fragment(&self, key: &FragmentKey<$address>, fragment: &Fragment) {
                // The least recently used make room; what isn't remembered isn't followed.
                let _: Result<(), i32> = maps::$fragments.insert(key, fragment, 0);
            }
        }
    };
}

family_tables!(
    Ipv4Address,
    SERVICES,
    FLOWS,
    EMBRYONIC,
    FRAGMENTS,
    ACCESS,
    CLIENTS,
    SOURCES,
    REPLY_TRACES
);
family_tables!(
    Ipv6Address,
    SERVICES_IPV6,
    FLOWS_IPV6,
    EMBRYONIC_IPV6,
    FRAGMENTS_IPV6,
    ACCESS_IPV6,
    CLIENTS_IPV6,
    SOURCES_IPV6,
    REPLY_TRACES_IPV6
);
