//! Typed handles of the pinned maps.

use std::{io::ErrorKind, os::fd::AsFd};

use aya::maps::{
    Array, HashMap, IterableMap, Map, MapData, MapError, PerCpuArray, lpm_trie::LpmTrie,
    xdp::DevMapHash,
};
use lb_common::{
    abi::{
        Access, AccessKey, Backend, BackendInfo, Client, ClientKey, Counters, Flow, FlowKey,
        Fragment, FragmentKey, LocalMac, Refusal, Service, ServiceInfo, ServiceKey, Settings,
        Station, maps,
    },
    datapath::{Reason, Table},
    wire::{Address, Ipv4Address, Ipv6Address, NetworkU32},
};

use super::{
    DataplaneError, Pins, PortMemory, PortSets, RingMemory, Shortcuts, TraceMemory, batch,
};

/// The pinned maps that are keyed by addresses of a family.
#[expect(missing_docs, reason = "lb_common::abi::maps describes each of them")]
pub struct FamilyMaps<A: Address> {
    pub services: HashMap<MapData, ServiceKey<A>, Service>,
    flows: HashMap<MapData, FlowKey<A>, Flow<A>>,
    embryonic: HashMap<MapData, FlowKey<A>, Flow<A>>,
    pub fragments: HashMap<MapData, FragmentKey<A>, Fragment>,
    pub access: LpmTrie<MapData, AccessKey<A>, Access>,
    pub clients: HashMap<MapData, ClientKey<A>, Client>,
}

impl<A: Address> FamilyMaps<A> {
    /// A table of flows.
    pub const fn flows(&self, table: Table) -> &HashMap<MapData, FlowKey<A>, Flow<A>> {
        match table {
            Table::Established => &self.flows,
            Table::Embryonic => &self.embryonic,
        }
    }

    /// The same, to change it.
    pub const fn flows_mut(&mut self, table: Table) -> &mut HashMap<MapData, FlowKey<A>, Flow<A>> {
        match table {
            Table::Established => &mut self.flows,
            Table::Embryonic => &mut self.embryonic,
        }
    }

    /// Removes an entry of a table of flows, and its shortcuts. Returns whether it was there.
    pub fn remove_flow(&mut self, table: Table, key: &FlowKey<A>, shortcuts: &Shortcuts) -> bool {
        let was_there = self.flows_mut(table).remove(key).is_ok();
        if table == Table::Established {
            shortcuts.erase(key);
        }
        was_there
    }

    /// Calls `visit` with every entry of a table of flows. A flow has one for each direction whose
    /// packets pass through us.
    ///
    /// # Errors
    ///
    /// The map can't be read.
    pub fn for_each(
        &self,
        table: Table,
        visit: impl FnMut(&FlowKey<A>, &Flow<A>),
    ) -> Result<(), DataplaneError> {
        let map = IterableMap::map(self.flows(table)).fd().as_fd();
        batch::for_each(map, visit).map_err(DataplaneError::system(name_of(table)))
    }

    /// Calls `visit` with every client that keeps its backend.
    ///
    /// # Errors
    ///
    /// The map can't be read.
    pub fn for_each_client(
        &self,
        visit: impl FnMut(&ClientKey<A>, &Client),
    ) -> Result<(), DataplaneError> {
        let map = IterableMap::map(&self.clients).fd().as_fd();
        batch::for_each(map, visit).map_err(DataplaneError::system(maps::CLIENTS))
    }

    /// How many entries there is room for in a table of flows.
    ///
    /// # Errors
    ///
    /// The kernel doesn't tell.
    pub fn room(&self, table: Table) -> Result<u32, DataplaneError> {
        let info = IterableMap::map(self.flows(table)).info();
        Ok(info.map_err(DataplaneError::map(name_of(table)))?.max_entries())
    }

    /// How many clients with affinity there is room for.
    ///
    /// # Errors
    ///
    /// The kernel doesn't tell.
    pub fn room_for_clients(&self) -> Result<u32, DataplaneError> {
        let info = IterableMap::map(&self.clients).info();
        Ok(info.map_err(DataplaneError::map(maps::CLIENTS))?.max_entries())
    }

    /// Entries in use in a table of flows, and how many there is room for.
    ///
    /// # Errors
    ///
    /// The map can't be read.
    pub fn usage(&self, table: Table) -> Result<(u32, u32), DataplaneError> {
        let mut used = 0;
        self.for_each(table, |_, _| used += 1)?;
        Ok((used, self.room(table)?))
    }
}

const fn name_of(table: Table) -> &'static str {
    match table {
        Table::Established => maps::FLOWS,
        Table::Embryonic => maps::EMBRYONIC,
    }
}

/// The pinned maps.
#[expect(missing_docs, reason = "lb_common::abi::maps describes each of them")]
pub struct Maps {
    pub settings: Array<MapData, Settings>,
    pub backends: Array<MapData, Backend>,
    pub rings: RingMemory,
    pub ipv4: FamilyMaps<Ipv4Address>,
    pub ipv6: FamilyMaps<Ipv6Address>,
    pub nat_sources: Array<MapData, [u32; 4]>,
    pub ports: PortMemory,
    pub refusals: Array<MapData, Refusal>,
    pub loads: Array<MapData, i64>,
    pub service_loads: Array<MapData, i64>,
    pub local_macs: HashMap<MapData, LocalMac, u32>,
    pub stations: Array<MapData, Station>,
    pub port_sets: PortSets,
    pub shortcuts: Shortcuts,
    pub egress: DevMapHash<MapData>,
    pub service_counters: PerCpuArray<MapData, Counters>,
    pub backend_counters: PerCpuArray<MapData, Counters>,
    pub reason_counters: PerCpuArray<MapData, u64>,
    pub service_info: Array<MapData, ServiceInfo>,
    pub backend_info: Array<MapData, BackendInfo>,
}

impl Maps {
    /// Opens the pinned maps.
    ///
    /// # Errors
    ///
    /// They aren't there, the user may not, or a map's sizes aren't those of this layout.
    pub fn open(pins: &Pins) -> Result<Self, DataplaneError> {
        pins.check_layout()?;
        if !pins.exist() {
            return Err(pins.absence());
        }
        Ok(Self {
            settings: open(pins, maps::SETTINGS)?,
            backends: open(pins, maps::BACKENDS)?,
            rings: RingMemory::new(data(pins, maps::RINGS)?)?,
            ipv4: FamilyMaps {
                services: open(pins, maps::SERVICES)?,
                flows: open(pins, maps::FLOWS)?,
                embryonic: open(pins, maps::EMBRYONIC)?,
                fragments: open(pins, maps::FRAGMENTS)?,
                access: open(pins, maps::ACCESS)?,
                clients: open(pins, maps::CLIENTS)?,
            },
            ipv6: FamilyMaps {
                services: open(pins, maps::SERVICES_IPV6)?,
                flows: open(pins, maps::FLOWS_IPV6)?,
                embryonic: open(pins, maps::EMBRYONIC_IPV6)?,
                fragments: open(pins, maps::FRAGMENTS_IPV6)?,
                access: open(pins, maps::ACCESS_IPV6)?,
                clients: open(pins, maps::CLIENTS_IPV6)?,
            },
            nat_sources: open(pins, maps::NAT_SOURCES)?,
            ports: PortMemory::new(data(pins, maps::NAT_PORTS)?)?,
            refusals: open(pins, maps::REFUSALS)?,
            loads: open(pins, maps::LOADS)?,
            service_loads: open(pins, maps::SERVICE_LOADS)?,
            local_macs: open(pins, maps::LOCAL_MACS)?,
            stations: open(pins, maps::STATIONS)?,
            port_sets: PortSets::new(data(pins, maps::PORT_SETS)?)?,
            shortcuts: Shortcuts {
                replies: TraceMemory::of_replies::<Ipv4Address>(
                    data(pins, maps::REPLY_TRACES)?,
                    maps::REPLY_TRACES,
                )?,
                replies_ipv6: TraceMemory::of_replies::<Ipv6Address>(
                    data(pins, maps::REPLY_TRACES_IPV6)?,
                    maps::REPLY_TRACES_IPV6,
                )?,
                traces: TraceMemory::new(data(pins, maps::TRACES)?)?,
                nat_traces: TraceMemory::of_nat(data(pins, maps::NAT_TRACES)?)?,
                settings: open(pins, maps::SETTINGS)?,
            },
            egress: open(pins, maps::EGRESS).map_err(|error| match error {
                // Only who may make maps finds out how large its values are.
                DataplaneError::Map { source: MapError::InvalidValueSize { .. }, .. } => {
                    DataplaneError::Permission { what: format!("reading map {}", maps::EGRESS) }
                }
                error => error,
            })?,
            service_counters: open(pins, maps::SERVICE_COUNTERS)?,
            backend_counters: open(pins, maps::BACKEND_COUNTERS)?,
            reason_counters: open(pins, maps::REASON_COUNTERS)?,
            service_info: open(pins, maps::SERVICE_INFO)?,
            backend_info: open(pins, maps::BACKEND_INFO)?,
        })
    }

    /// How many addresses, ports and protocols of each family there is room for.
    ///
    /// # Errors
    ///
    /// The kernel doesn't tell.
    pub fn most_binds(&self) -> Result<u32, DataplaneError> {
        let info = IterableMap::map(&self.ipv4.services).info();
        Ok(info.map_err(DataplaneError::map(maps::SERVICES))?.max_entries())
    }

    /// Counts of a service, over all CPUs.
    ///
    /// # Errors
    ///
    /// The map can't be read.
    pub fn service_count(&self, service: u32) -> Result<Counters, DataplaneError> {
        sum(&self.service_counters, service).map_err(DataplaneError::map(maps::SERVICE_COUNTERS))
    }

    /// Counts of a backend, over all CPUs.
    ///
    /// # Errors
    ///
    /// The map can't be read.
    pub fn backend_count(&self, backend: u32) -> Result<Counters, DataplaneError> {
        sum(&self.backend_counters, backend).map_err(DataplaneError::map(maps::BACKEND_COUNTERS))
    }

    /// Packets counted under a reason, over all CPUs.
    ///
    /// # Errors
    ///
    /// The map can't be read.
    pub fn reason_count(&self, reason: Reason) -> Result<u64, DataplaneError> {
        let counts = self
            .reason_counters
            .get(&(reason as u32), 0)
            .map_err(DataplaneError::map(maps::REASON_COUNTERS))?;
        Ok(counts.iter().sum())
    }
}

fn sum(counters: &PerCpuArray<MapData, Counters>, index: u32) -> Result<Counters, MapError> {
    let mut sum = Counters::default();
    for counts in counters.get(&index, 0)?.iter() {
        sum.add(counts);
    }
    Ok(sum)
}

/// An address as it stands in [`Maps::nat_sources`].
pub fn nat_source_words(words: [NetworkU32; 4]) -> [u32; 4] {
    words.map(NetworkU32::raw)
}

pub(super) fn open<M: TryFrom<Map, Error = MapError>>(
    pins: &Pins,
    name: &'static str,
) -> Result<M, DataplaneError> {
    Map::from_map_data(data(pins, name)?).and_then(M::try_from).map_err(DataplaneError::map(name))
}

/// A pinned map.
///
/// # Errors
///
/// It isn't there, or the user may not.
pub(super) fn data(pins: &Pins, name: &'static str) -> Result<MapData, DataplaneError> {
    let path = pins.map(name);
    MapData::from_pin(&path).map_err(|error| match cause(&error) {
        Some(ErrorKind::PermissionDenied) if path.is_dir() => DataplaneError::NoMap { path },
        Some(ErrorKind::PermissionDenied) => {
            DataplaneError::Permission { what: format!("opening map {name}") }
        }
        Some(ErrorKind::NotFound) => DataplaneError::PinGone(name),
        _ => DataplaneError::map(name)(error),
    })
}

/// What the operating system says that lies behind an error.
fn cause(error: &MapError) -> Option<ErrorKind> {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return Some(error.kind());
        }
        source = error.source();
    }
    None
}
