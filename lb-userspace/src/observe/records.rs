//! Services, backends, rings and reasons.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, UNIX_EPOCH},
};

use lb_common::{
    abi::{
        BackendInfo, CHECK_SERVICE, Counters, Direction, FlowState, Lifecycle, Ring, ServiceInfo,
        maps as names,
    },
    datapath::{Reason, Table},
    wire::Address,
};
use serde::Serialize;

use crate::dataplane::{DataplaneError, FamilyMaps, Maps};

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names of the documented JSON fields")]
pub struct ServiceRecord {
    pub name: String,
    pub bind: Vec<String>,
    pub protocol: &'static str,
    pub forwarding: &'static str,
    pub balance: &'static str,
    pub backends_up: usize,
    pub backends_total: usize,
    pub flows: u64,
    pub new_flows: u64,
    pub packets: u64,
    pub bytes: u64,
    pub reply_packets: u64,
    pub reply_bytes: u64,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names of the documented JSON fields")]
pub struct BackendRecord {
    pub service: String,
    pub name: String,
    pub address: String,
    pub state: &'static str,
    pub weight: u32,
    pub share: f64,
    pub flows: u64,
    pub new_flows: u64,
    pub packets: u64,
    pub bytes: u64,
    pub reply_packets: u64,
    pub reply_bytes: u64,
    pub check: CheckRecord,
}

/// What the checks say of a backend.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names of the documented JSON fields")]
pub struct CheckRecord {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub result: &'static str,
    pub detail: String,
    pub latency_ms: f64,
    pub last_change: Option<String>,
}

/// A service's ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names of the documented JSON fields")]
pub struct RingRecord {
    pub service: String,
    pub size: u32,
    pub generation: u32,
    pub slots: BTreeMap<String, u32>,
}

/// Why packets met their fate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names of the documented JSON fields")]
pub struct ReasonRecord {
    pub reason: &'static str,
    pub kind: &'static str,
    pub packets: u64,
    pub description: &'static str,
}

/// Services, their backends and rings at one moment.
pub struct Overview {
    services: BTreeMap<u32, ServiceInfo>,
    backends: BTreeMap<u32, BackendInfo>,
    addresses: BTreeMap<u32, SocketAddr>,
    binds: BTreeMap<u32, Vec<SocketAddr>>,
    rings: BTreeMap<u32, Ring>,
    /// Flows under way, by backend.
    flows: BTreeMap<u32, u64>,
}

/// What the check says, and the agent where it makes a difference.
fn detail(info: &BackendInfo) -> String {
    let percent = info.agent_percent.checked_sub(1).filter(|percent| *percent != 100);
    let effect = match percent {
        _ if info.is_held_by_agent() => info.state().to_owned(),
        Some(percent) => format!("{percent}% of its weight"),
        None => return info.detail.as_str().to_owned(),
    };
    let (detail, reason) = (info.detail.as_str(), info.agent_reason.as_str());
    let colon = if reason.is_empty() { "" } else { ": " };
    format!("{detail}; {effect} as its agent says{colon}{reason}")
}

impl Overview {
    /// Reads the maps, and counts flows.
    ///
    /// # Errors
    ///
    /// One of them can't be read.
    pub fn read(maps: &Maps) -> Result<Self, DataplaneError> {
        let mut overview = Self::without_flows(maps)?;
        overview.count_flows(&maps.ipv4)?;
        overview.count_flows(&maps.ipv6)?;
        Ok(overview)
    }

    /// Reads the maps, but for those of flows, which may be large.
    ///
    /// # Errors
    ///
    /// One of them can't be read.
    pub fn without_flows(maps: &Maps) -> Result<Self, DataplaneError> {
        let mut overview = Self {
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            addresses: BTreeMap::new(),
            binds: BTreeMap::new(),
            rings: BTreeMap::new(),
            flows: BTreeMap::new(),
        };
        for (index, info) in (0..).zip(maps.service_info.iter()) {
            let info = info.map_err(DataplaneError::map(names::SERVICE_INFO))?;
            if info.lifecycle != Lifecycle::Free {
                overview.services.insert(index, info);
            }
        }
        for (index, info) in (0..).zip(maps.backend_info.iter()) {
            let info = info.map_err(DataplaneError::map(names::BACKEND_INFO))?;
            if info.lifecycle != Lifecycle::Free {
                let backend =
                    maps.backends.get(&index, 0).map_err(DataplaneError::map(names::BACKENDS))?;
                overview.addresses.insert(index, backend.socket_address());
                overview.backends.insert(index, info);
            }
        }
        overview.read_family(&maps.ipv4)?;
        overview.read_family(&maps.ipv6)?;
        Ok(overview)
    }

    fn read_family<A: Address>(&mut self, maps: &FamilyMaps<A>) -> Result<(), DataplaneError> {
        for entry in &maps.services {
            let (key, service) = entry.map_err(DataplaneError::map(names::SERVICES))?;
            let bind = SocketAddr::new(key.address.into(), key.port.get());
            self.binds.entry(service.index).or_default().push(bind);
            self.rings.insert(service.index, service.ring);
        }
        Ok(())
    }

    fn count_flows<A: Address>(&mut self, maps: &FamilyMaps<A>) -> Result<(), DataplaneError> {
        maps.for_each(Table::Established, |_, flow| {
            let under_way = [FlowState::ESTABLISHED, FlowState::CLOSING].contains(&flow.state);
            let is_traffic = flow.service != CHECK_SERVICE;
            if under_way && is_traffic && flow.direction == Direction::ToBackend as u8 {
                *self.flows.entry(flow.backend).or_default() += 1;
            }
        })
    }

    /// Indices of the services of that name.
    pub fn services_named(&self, name: &str) -> BTreeSet<u32> {
        let found = self.services.iter().filter(|(_, info)| info.name.as_str() == name);
        found.map(|(index, _)| *index).collect()
    }

    /// Indices of the backends of that name.
    pub fn backends_named(&self, name: &str) -> BTreeSet<u32> {
        let found = self.backends.iter().filter(|(_, info)| info.name.as_str() == name);
        found.map(|(index, _)| *index).collect()
    }

    /// Flows under way to the backend of that name, of the service of that name, also where its address was
    /// another when they began.
    pub fn flows_of(&self, service: &str, backend: &str) -> u64 {
        self.found(service, backend).map(|(index, _)| self.flow_count(*index)).sum()
    }

    /// Whether it drains, is in maintenance or is no longer in the configuration.
    pub fn is_drained(&self, service: &str, backend: &str) -> bool {
        self.found(service, backend).all(|(_, info)| ["drain", "maint"].contains(&info.state()))
    }

    fn found(&self, service: &str, backend: &str) -> impl Iterator<Item = (&u32, &BackendInfo)> {
        self.backends.iter().filter(move |(_, info)| {
            info.name.as_str() == backend && self.service_name(info.service) == service
        })
    }

    /// The services in the configuration, and those that flows still belong to.
    ///
    /// # Errors
    ///
    /// Counters can't be read.
    pub fn services(&self, maps: &Maps) -> Result<Vec<ServiceRecord>, DataplaneError> {
        self.services
            .iter()
            .map(|(index, info)| {
                let counts = maps.service_count(*index)?;
                let mut binds = self.binds.get(index).cloned().unwrap_or_default();
                binds.sort();
                let active = |backend: &&BackendInfo| {
                    backend.service == *index && backend.lifecycle == Lifecycle::Active
                };
                let backends = || self.backends.values().filter(active);
                let of_service =
                    self.backends.iter().filter(|(_, backend)| backend.service == *index);
                Ok(ServiceRecord {
                    name: info.name.as_str().to_owned(),
                    bind: binds.iter().map(ToString::to_string).collect(),
                    protocol: info.protocol.name(),
                    forwarding: info.forwarding.name(),
                    balance: info.balance.name(),
                    backends_up: backends().filter(|backend| backend.takes_new_flows()).count(),
                    backends_total: backends().count(),
                    flows: of_service.map(|(index, _)| self.flow_count(*index)).sum(),
                    new_flows: counts.new_flows,
                    packets: counts.packets,
                    bytes: counts.bytes,
                    reply_packets: counts.reply_packets,
                    reply_bytes: counts.reply_bytes,
                })
            })
            .collect()
    }

    /// The backends in the configuration, and those that flows still go to.
    ///
    /// # Errors
    ///
    /// Counters can't be read.
    pub fn backends(&self, maps: &Maps) -> Result<Vec<BackendRecord>, DataplaneError> {
        let mut records = Vec::new();
        for (index, info) in &self.backends {
            let counts: Counters = maps.backend_count(*index)?;
            let size = self.rings.get(&info.service).map_or(0, |ring| ring.size());
            let last_change = (info.last_change > 0).then(|| {
                let time = UNIX_EPOCH + Duration::from_secs(info.last_change);
                humantime::format_rfc3339_seconds(time).to_string()
            });
            records.push(BackendRecord {
                service: self.service_name(info.service),
                name: info.name.as_str().to_owned(),
                address: self.addresses.get(index).map(ToString::to_string).unwrap_or_default(),
                state: info.state(),
                weight: info.weight(),
                share: if size == 0 { 0.0 } else { f64::from(info.ring_slots) / f64::from(size) },
                flows: self.flow_count(*index),
                new_flows: counts.new_flows,
                packets: counts.packets,
                bytes: counts.bytes,
                reply_packets: counts.reply_packets,
                reply_bytes: counts.reply_bytes,
                check: CheckRecord {
                    kind: info.check.name(),
                    result: info.result.name(),
                    detail: detail(info),
                    latency_ms: f64::from(info.check_microseconds) / 1000.0,
                    last_change,
                },
            });
        }
        records.sort_by(|first, second| {
            (&first.service, &first.name).cmp(&(&second.service, &second.name))
        });
        Ok(records)
    }

    /// The rings, counted slot by slot.
    pub fn rings(&self, maps: &Maps) -> Vec<RingRecord> {
        let record = |(service, ring): (&u32, &Ring)| {
            let mut slots: BTreeMap<String, u32> = BTreeMap::new();
            for index in maps.rings.read(ring.offset(), ring.size()) {
                *slots.entry(self.backend_name(index)).or_default() += 1;
            }
            RingRecord {
                service: self.service_name(*service),
                size: ring.size(),
                generation: ring.generation(),
                slots,
            }
        };
        self.rings.iter().map(record).collect()
    }

    pub(super) fn service_name(&self, index: u32) -> String {
        self.services
            .get(&index)
            .map_or_else(|| format!("#{index}"), |info| info.name.as_str().to_owned())
    }

    pub(super) fn protocol(&self, service: u32) -> &'static str {
        self.services.get(&service).map_or("unknown", |info| info.protocol.name())
    }

    pub(super) fn backend_name(&self, index: u32) -> String {
        self.backends
            .get(&index)
            .map_or_else(|| format!("#{index}"), |info| info.name.as_str().to_owned())
    }

    fn flow_count(&self, backend: u32) -> u64 {
        self.flows.get(&backend).copied().unwrap_or(0)
    }
}

/// Every reason and how many packets met it.
///
/// # Errors
///
/// The map can't be read.
pub fn reasons(maps: &Maps) -> Result<Vec<ReasonRecord>, DataplaneError> {
    Reason::ALL
        .iter()
        .map(|reason| {
            Ok(ReasonRecord {
                reason: reason.name(),
                kind: reason.kind().name(),
                packets: maps.reason_count(*reason)?,
                description: reason.description().trim(),
            })
        })
        .collect()
}
