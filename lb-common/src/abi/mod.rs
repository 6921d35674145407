//! What lives in BPF maps: the contract between the XDP program, the controller and the CLI.
//!
//! Every type is plain old data without hidden padding; sizes and offsets are asserted here. A
//! change to any of them, to a map's type or to a meaning raises [`VERSION`], which is part of the
//! pins' path, so that a new program never reads an old layout.

mod backend;
mod counters;
mod entry;
mod flow;
mod forwarding;
mod fragment;
mod info;
mod port_bits;
mod ports;
mod refusal;
mod ring;
mod service;
mod settings;
mod source;
mod text;
mod tick;
mod word;

pub use backend::{Backend, Fate};
pub use counters::{Answer, Counters, Direction};
pub use entry::Entry;
pub use flow::{CHECK_SERVICE, Flow, FlowKey, FlowState, Hop, Link, Stations, finished};
pub use forwarding::{AddressFamily, Forwarding};
pub use fragment::{Fragment, FragmentKey};
pub use info::{
    BackendInfo, Balance, CheckKind, CheckResult, Lifecycle, OperatorState, Protocol, ServiceInfo,
    UNUSED_SERVICE,
};
pub use port_bits::{Membership, PortBits, PortSet};
pub use ports::{PORTS_A_WORD, PoolHead, generation_start, pool_words, port_words};
pub use refusal::Refusal;
pub use ring::{NO_BACKEND, RING_CHUNK_SLOTS, Ring, RingChunk, Slot};
pub use service::{Service, ServiceKey, service_options};
pub use settings::{LocalMac, STATIONS, Settings, Station};
pub use source::{Access, AccessKey, Client, ClientKey};
pub use text::Text;
pub use tick::{Beat, Moment, Stamp, Tick};

use crate::wire::{Ipv4Address, Ipv6Address};

/// Whether both are the same, word by word: derived equality of arrays becomes a call to `memcmp`, which a BPF program doesn't
/// have.
#[inline(always)]
fn same_words<const WORDS: usize>(these: &[u32; WORDS], others: &[u32; WORDS]) -> bool {
    let mut differing = 0;
    for (word, other) in these.iter().zip(others) {
        differing |= word ^ other;
    }
    differing == 0
}

/// Version of everything in this module.
pub const VERSION: u32 = 20;
/// Room for counts of packets by reason.
pub const MOST_REASONS: u32 = 64;
const _: () = assert!(crate::datapath::Reason::ALL.len() <= MOST_REASONS as usize);

/// Names of the maps, which are also the names of their pins.
pub mod maps {
    /// One [`super::Settings`].
    pub const SETTINGS: &str = "SETTINGS";
    /// [`super::ServiceKey`] to [`super::Service`].
    pub const SERVICES: &str = "SERVICES";
    /// [`super::Backend`] by index.
    pub const BACKENDS: &str = "BACKENDS";
    /// All rings, as [`super::RingChunk`]s.
    pub const RINGS: &str = "RINGS";
    /// Established flows: [`super::FlowKey`] to [`super::Flow`], one entry a direction.
    pub const FLOWS: &str = "FLOWS";
    /// Half-open handshakes, in the same form.
    pub const EMBRYONIC: &str = "EMBRYONIC";
    /// [`SERVICES`] for IPv6.
    pub const SERVICES_IPV6: &str = "SERVICES_IPV6";
    /// [`FLOWS`] for IPv6.
    pub const FLOWS_IPV6: &str = "FLOWS_IPV6";
    /// [`EMBRYONIC`] for IPv6.
    pub const EMBRYONIC_IPV6: &str = "EMBRYONIC_IPV6";
    /// [`super::FragmentKey`] to [`super::Fragment`].
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// [`FRAGMENTS`] for IPv6.
    pub const FRAGMENTS_IPV6: &str = "FRAGMENTS_IPV6";
    /// Programs by [`crate::datapath::Stage`].
    pub const STAGES: &str = "STAGES";
    /// Addresses that full NAT sends from, by index.
    pub const NAT_SOURCES: &str = "NAT_SOURCES";
    /// Pools of the source ports that full NAT has left, in words of 64 bits.
    pub const NAT_PORTS: &str = "NAT_PORTS";
    /// [`super::Refusal`] by a backend's index.
    pub const REFUSALS: &str = "REFUSALS";
    /// Connections under way to a backend, by its index.
    pub const LOADS: &str = "LOADS";
    /// The same of a service.
    pub const SERVICE_LOADS: &str = "SERVICE_LOADS";
    /// Lists of networks: [`super::AccessKey`] by prefix to [`super::Access`].
    pub const ACCESS: &str = "ACCESS";
    /// [`ACCESS`] for IPv6.
    pub const ACCESS_IPV6: &str = "ACCESS_IPV6";
    /// Clients that keep their backend: [`super::ClientKey`] to [`super::Client`].
    pub const CLIENTS: &str = "CLIENTS";
    /// [`CLIENTS`] for IPv6.
    pub const CLIENTS_IPV6: &str = "CLIENTS_IPV6";
    /// When a source's next SYN is due, in nanoseconds, by its address.
    pub const SOURCES: &str = "SOURCES";
    /// [`SOURCES`] for IPv6, by networks of 64 bits.
    pub const SOURCES_IPV6: &str = "SOURCES_IPV6";
    /// Hardware addresses that are ours: [`super::LocalMac`] to the longest datagram there, in bytes.
    pub const LOCAL_MACS: &str = "LOCAL_MACS";
    /// Those that most frames are for: [`super::Station`] by [`super::LocalMac::place`].
    pub const STATIONS: &str = "STATIONS";
    /// Sets of ports: one [`super::PortBits`].
    pub const PORT_SETS: &str = "PORT_SETS";
    /// Which flows by direct return were looked up lately: [`crate::datapath::TraceSet`]s.
    pub const TRACES: &str = "TRACES";
    /// The same of flows whose replies pass through us: [`crate::datapath::NatTraceSet`]s.
    pub const NAT_TRACES: &str = "NAT_TRACES";
    /// Traces of replies over IPv4, as [`crate::datapath::ReplySet`]s.
    pub const REPLY_TRACES: &str = "REPLY_TRACES";
    /// Traces of replies over IPv6, likewise.
    pub const REPLY_TRACES_IPV6: &str = "REPLY_TRACES_IPV6";
    /// Interfaces that frames may be redirected to, by interface index.
    pub const EGRESS: &str = "EGRESS";
    /// [`super::Counters`] by service, per CPU.
    pub const SERVICE_COUNTERS: &str = "SERVICE_COUNTERS";
    /// [`super::Counters`] by backend, per CPU.
    pub const BACKEND_COUNTERS: &str = "BACKEND_COUNTERS";
    /// Packets by reason, per CPU.
    pub const REASON_COUNTERS: &str = "REASON_COUNTERS";
    /// [`super::ServiceInfo`] by index; the program doesn't read it.
    pub const SERVICE_INFO: &str = "SERVICE_INFO";
    /// [`super::BackendInfo`] by index; the program doesn't read it.
    pub const BACKEND_INFO: &str = "BACKEND_INFO";

    /// Every map.
    pub const ALL: [&str; 36] = [
        SETTINGS,
        SERVICES,
        BACKENDS,
        RINGS,
        FLOWS,
        EMBRYONIC,
        SERVICES_IPV6,
        FLOWS_IPV6,
        EMBRYONIC_IPV6,
        FRAGMENTS,
        FRAGMENTS_IPV6,
        STAGES,
        NAT_SOURCES,
        NAT_PORTS,
        REFUSALS,
        LOADS,
        SERVICE_LOADS,
        ACCESS,
        ACCESS_IPV6,
        CLIENTS,
        CLIENTS_IPV6,
        SOURCES,
        SOURCES_IPV6,
        LOCAL_MACS,
        STATIONS,
        PORT_SETS,
        TRACES,
        NAT_TRACES,
        REPLY_TRACES,
        REPLY_TRACES_IPV6,
        EGRESS,
        SERVICE_COUNTERS,
        BACKEND_COUNTERS,
        REASON_COUNTERS,
        SERVICE_INFO,
        BACKEND_INFO,
    ];
}

/// Declares that types may be copied to and from maps as bytes.
macro_rules! plain_data {
    ($($type:ty: $size:literal),* $(,)?) => {$(
        const _: () = assert!(size_of::<$type>() == $size);

        #[cfg(feature = "user")]
        // SAFETY: the type is bytemuck::Pod as well: any bit pattern is valid, and it has no padding.
        unsafe impl aya::Pod for $type {}
    )*};
}

plain_data! {
    Access: 1,
    Backend: 128,
    BackendInfo: 320,
    Client: 8,
    Counters: 72,
    Fragment: 12,
    LocalMac: 16,
    PortBits: 32_768,
    Refusal: 8,
    Service: 32,
    ServiceInfo: 96,
    Settings: 64,
    Station: 32,
}

/// The same for a type that is there for both address families.
macro_rules! plain_data_of_families {
    ($($type:ident: $ipv4:literal $ipv6:literal),* $(,)?) => {$(
        const _: () = assert!(size_of::<$type<Ipv4Address>>() == $ipv4);
        const _: () = assert!(size_of::<$type<Ipv6Address>>() == $ipv6);

        #[cfg(feature = "user")]
        // SAFETY: as above.
        unsafe impl<A: crate::wire::Address> aya::Pod for $type<A> {}
    )*};
}

plain_data_of_families! {
    AccessKey: 8 20,
    ClientKey: 8 20,
    Flow: 64 88,
    FlowKey: 16 40,
    FragmentKey: 16 40,
    ServiceKey: 8 20,
}
