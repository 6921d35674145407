//! The maps. Sizes here are the least that makes sense; the controller sets those in force when it
//! creates them.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, DevMapHash, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray},
};
use lb_common::{
    abi::{
        Access, AccessKey, Backend, BackendInfo, Client, ClientKey, Counters, Flow, FlowKey,
        Fragment, FragmentKey, LocalMac, PortBits, Refusal, RingChunk, Service, ServiceInfo,
        ServiceKey, Settings, Station,
    },
    datapath::{
        ErrorScratch, NatTraceSet, Note, ReplySet, Stage, TRACE_SETS, TraceSet, reply_sets,
    },
    wire::{Ipv4Address, Ipv6Address, NetworkU32},
};

#[map]
pub(crate) static SETTINGS: Array<Settings> = Array::pinned(1, 0);

// Not pre-allocated: an update then replaces a value at once, and no packet sees half of it.
#[map]
pub(crate) static SERVICES: HashMap<ServiceKey<Ipv4Address>, Service> =
    HashMap::pinned(1, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static SERVICES_IPV6: HashMap<ServiceKey<Ipv6Address>, Service> =
    HashMap::pinned(1, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static BACKENDS: Array<Backend> = Array::pinned(1, 0);

// Written through a mapping of its memory, which Linux has had since 5.5 (commit fc9702273e2e).
#[map]
pub(crate) static RINGS: Array<RingChunk> = Array::pinned(1, BPF_F_MMAPABLE);

#[map]
pub(crate) static FLOWS: HashMap<FlowKey<Ipv4Address>, Flow<Ipv4Address>> = HashMap::pinned(1, 0);

#[map]
pub(crate) static EMBRYONIC: LruHashMap<FlowKey<Ipv4Address>, Flow<Ipv4Address>> =
    LruHashMap::pinned(1, 0);

// Not pre-allocated: where IPv6 isn't used it takes no memory.
#[map]
pub(crate) static FLOWS_IPV6: HashMap<FlowKey<Ipv6Address>, Flow<Ipv6Address>> =
    HashMap::pinned(1, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static EMBRYONIC_IPV6: LruHashMap<FlowKey<Ipv6Address>, Flow<Ipv6Address>> =
    LruHashMap::pinned(1, 0);

// As many datagrams as may be on their way in parts.
#[map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey<Ipv4Address>, Fragment> =
    LruHashMap::pinned(16_384, 0);

#[map]
pub(crate) static FRAGMENTS_IPV6: LruHashMap<FragmentKey<Ipv6Address>, Fragment> =
    LruHashMap::pinned(16_384, 0);

// Each program that is loaded has its own, pinned under a name of its own, so that all parts change at once.
#[map]
pub(crate) static STAGES: ProgramArray = ProgramArray::with_max_entries(Stage::ALL.len() as u32, 0);

// No program runs while another does on the same CPU, and nobody else looks.
#[map]
pub(crate) static SCRATCH: PerCpuArray<ErrorScratch<Ipv4Address>> =
    PerCpuArray::with_max_entries(1, 0);

#[map]
pub(crate) static SCRATCH_IPV6: PerCpuArray<ErrorScratch<Ipv6Address>> =
    PerCpuArray::with_max_entries(1, 0);

#[map]
pub(crate) static NOTE: PerCpuArray<Note> = PerCpuArray::with_max_entries(1, 0);

#[map]
pub(crate) static NAT_SOURCES: Array<[NetworkU32; 4]> = Array::pinned(1, 0);

// The controller writes into it through a mapping of its memory as well.
#[map]
pub(crate) static NAT_PORTS: Array<u64> = Array::pinned(1, BPF_F_MMAPABLE);

#[map]
pub(crate) static REFUSALS: Array<Refusal> = Array::pinned(1, 0);

#[map]
pub(crate) static LOADS: Array<i64> = Array::pinned(1, 0);

#[map]
pub(crate) static SERVICE_LOADS: Array<i64> = Array::pinned(1, 0);

#[map]
pub(crate) static ACCESS: LpmTrie<AccessKey<Ipv4Address>, Access> =
    LpmTrie::pinned(1, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static ACCESS_IPV6: LpmTrie<AccessKey<Ipv6Address>, Access> =
    LpmTrie::pinned(1, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static CLIENTS: LruHashMap<ClientKey<Ipv4Address>, Client> = LruHashMap::pinned(1, 0);

#[map]
pub(crate) static CLIENTS_IPV6: LruHashMap<ClientKey<Ipv6Address>, Client> =
    LruHashMap::pinned(1, 0);

#[map]
pub(crate) static SOURCES: LruHashMap<Ipv4Address, u64> = LruHashMap::pinned(1, 0);

#[map]
pub(crate) static SOURCES_IPV6: LruHashMap<Ipv6Address, u64> = LruHashMap::pinned(1, 0);

#[map]
pub(crate) static LOCAL_MACS: HashMap<LocalMac, u32> = HashMap::pinned(256, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static STATIONS: Array<Station> = Array::pinned(lb_common::abi::STATIONS, 0);

#[map]
pub(crate) static PORT_SETS: Array<PortBits> = Array::pinned(1, BPF_F_MMAPABLE);

// Pinned, so that a new program finds what the one before left.
#[map]
pub(crate) static TRACES: Array<TraceSet> = Array::pinned(TRACE_SETS, BPF_F_MMAPABLE);

#[map]
pub(crate) static NAT_TRACES: Array<NatTraceSet> = Array::pinned(TRACE_SETS, BPF_F_MMAPABLE);

#[map]
pub(crate) static REPLY_TRACES: Array<ReplySet<Ipv4Address>> =
    Array::pinned(reply_sets::<Ipv4Address>(), BPF_F_MMAPABLE);

#[map]
pub(crate) static REPLY_TRACES_IPV6: Array<ReplySet<Ipv6Address>> =
    Array::pinned(reply_sets::<Ipv6Address>(), BPF_F_MMAPABLE);

// Keyed by interface index, which Linux has had since 5.4 (commit 6f9d451ab1a3).
#[map]
pub(crate) static EGRESS: DevMapHash = DevMapHash::pinned(256, 0);

#[map]
pub(crate) static SERVICE_COUNTERS: PerCpuArray<Counters> = PerCpuArray::pinned(1, 0);

#[map]
pub(crate) static BACKEND_COUNTERS: PerCpuArray<Counters> = PerCpuArray::pinned(1, 0);

#[map]
pub(crate) static REASON_COUNTERS: PerCpuArray<u64> =
    PerCpuArray::pinned(lb_common::abi::MOST_REASONS, 0);

// The program reads neither of these; they stand here so that every map is declared in one place.
#[used]
#[map]
pub(crate) static SERVICE_INFO: Array<ServiceInfo> = Array::pinned(1, 0);

#[used]
#[map]
pub(crate) static BACKEND_INFO: Array<BackendInfo> = Array::pinned(1, 0);
