//! The maps themselves.

use std::{fs, os::fd::AsRawFd};

use aya::maps::{MapData, MapType};
use lb_common::{abi::maps as names, datapath::Table};
use serde::Serialize;

use crate::dataplane::{DataplaneError, Maps, Pins};

/// A map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names of the documented JSON fields")]
pub struct MapRecord {
    pub name: &'static str,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub key_size: u32,
    pub value_size: u32,
    pub entries: u32,
    pub max_entries: u32,
    pub bytes: u64,
}

/// Every map, with the entries that are in it: in an array, all there is room for.
///
/// # Errors
///
/// A map can't be read.
pub fn maps(pins: &Pins, maps: &Maps) -> Result<Vec<MapRecord>, DataplaneError> {
    names::ALL.into_iter().map(|name| record(pins, maps, name)).collect()
}

fn record(pins: &Pins, maps: &Maps, name: &'static str) -> Result<MapRecord, DataplaneError> {
    let pin = match name {
        names::STAGES => pins.stages().pop(),
        _ => None,
    };
    let pin = pin.unwrap_or_else(|| pins.map(name));
    let data = MapData::from_pin(pin).map_err(DataplaneError::map(name))?;
    let info = data.info().map_err(DataplaneError::map(name))?;
    let entries = match name {
        names::FLOWS => maps.ipv4.usage(Table::Established)?.0,
        names::FLOWS_IPV6 => maps.ipv6.usage(Table::Established)?.0,
        names::EMBRYONIC => maps.ipv4.usage(Table::Embryonic)?.0,
        names::EMBRYONIC_IPV6 => maps.ipv6.usage(Table::Embryonic)?.0,
        names::FRAGMENTS => maps.ipv4.fragments.keys().count() as u32,
        names::FRAGMENTS_IPV6 => maps.ipv6.fragments.keys().count() as u32,
        names::SERVICES => maps.ipv4.services.keys().count() as u32,
        names::SERVICES_IPV6 => maps.ipv6.services.keys().count() as u32,
        names::LOCAL_MACS => maps.local_macs.keys().count() as u32,
        names::EGRESS => maps.egress.keys().count() as u32,
        _ => info.max_entries(),
    };
    Ok(MapRecord {
        name,
        kind: kind(info.map_type().map_err(DataplaneError::map(name))?),
        key_size: info.key_size(),
        value_size: info.value_size(),
        entries,
        max_entries: info.max_entries(),
        bytes: memory(&data),
    })
}

const fn kind(kind: MapType) -> &'static str {
    match kind {
        MapType::Array => "array",
        MapType::PerCpuArray => "percpu_array",
        MapType::Hash => "hash",
        MapType::LruHash => "lru_hash",
        MapType::DevMapHash => "devmap_hash",
        MapType::ProgramArray => "prog_array",
        _ => "other",
    }
}

/// What the kernel says that a map takes, in bytes; 0 where it doesn't say.
fn memory(map: &MapData) -> u64 {
    use std::os::fd::AsFd;
    let fd = map.fd().as_fd().as_raw_fd();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
    let field = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    field.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}
