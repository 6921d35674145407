//! Single flows.

use std::{collections::BTreeSet, net::SocketAddr};

use ipnet::IpNet;
use lb_common::{
    abi::{CHECK_SERVICE, Direction, Flow, FlowKey},
    datapath::Table,
    wire::{Address, NetworkU16},
};
use serde::Serialize;

use super::Overview;
use crate::dataplane::{self, DataplaneError, FamilyMaps, Maps};

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names of the documented JSON fields")]
pub struct FlowRecord {
    pub service: String,
    pub backend: String,
    pub protocol: &'static str,
    pub client: SocketAddr,
    pub vip: SocketAddr,
    pub nat: Option<SocketAddr>,
    pub state: &'static str,
    pub age_s: u64,
    pub idle_s: u64,
}

/// Which flows are shown; all those for which everything that is set holds.
#[derive(Clone, Debug, Default)]
pub struct FlowFilter {
    /// The service's name.
    pub service: Option<String>,
    /// The backend's name.
    pub backend: Option<String>,
    /// Where the client's address lies.
    pub client: Option<IpNet>,
    /// The state's word.
    pub state: Option<String>,
    /// How many at most.
    pub limit: Option<usize>,
}

/// The flows that the filter lets through.
///
/// # Errors
///
/// A map can't be read.
pub fn flows(
    maps: &Maps,
    overview: &Overview,
    filter: &FlowFilter,
) -> Result<Vec<FlowRecord>, DataplaneError> {
    let filter = &Indexed::new(filter, overview);
    let mut found = Vec::new();
    for table in [Table::Established, Table::Embryonic] {
        of_family(&maps.ipv4, table, overview, filter, &mut found)?;
        of_family(&maps.ipv6, table, overview, filter, &mut found)?;
    }
    Ok(found)
}

/// Adds those of a table of a family.
fn of_family<A: Address>(
    maps: &FamilyMaps<A>,
    table: Table,
    overview: &Overview,
    filter: &Indexed<'_>,
    found: &mut Vec<FlowRecord>,
) -> Result<(), DataplaneError> {
    let room = filter.filter.limit.unwrap_or(usize::MAX).saturating_sub(found.len());
    let mut entries: Vec<(FlowKey<A>, Flow<A>)> = Vec::new();
    maps.for_each(table, |key, flow| {
        if entries.len() < room && filter.lets_through(key, flow) {
            entries.push((*key, *flow));
        }
    })?;
    let now = dataplane::now();
    let socket = |address: A, port: NetworkU16| SocketAddr::new(address.into(), port.get());
    let record = |(key, flow): &(FlowKey<A>, Flow<A>)| {
        let idle = now.since(flow.last_seen);
        let peer = flow.forwarding.sees_replies().then(|| flow.peer_key(key.protocol));
        let reply = peer.and_then(|peer| maps.flows(table).get(&peer, 0).ok());
        let idle = reply.map_or(idle, |reply| idle.min(now.since(reply.last_seen)));
        let is_translated = flow.forwarding.hides_client();
        FlowRecord {
            service: overview.service_name(flow.service),
            backend: overview.backend_name(flow.backend),
            protocol: overview.protocol(flow.service),
            client: socket(key.source, key.source_port),
            vip: socket(key.destination, key.destination_port),
            nat: is_translated.then(|| socket(flow.source, flow.source_port)),
            state: flow.state.name(key.protocol),
            age_s: dataplane::seconds(now.since(flow.opened)),
            idle_s: dataplane::seconds(idle),
        }
    };
    found.extend(entries.iter().map(record));
    Ok(())
}

/// A filter with the indices that its names stand for, so that no name is compared flow by flow.
struct Indexed<'a> {
    filter: &'a FlowFilter,
    services: Option<BTreeSet<u32>>,
    backends: Option<BTreeSet<u32>>,
}

impl<'a> Indexed<'a> {
    fn new(filter: &'a FlowFilter, overview: &Overview) -> Self {
        let services = filter.service.as_ref().map(|name| overview.services_named(name));
        let backends = filter.backend.as_ref().map(|name| overview.backends_named(name));
        Self { filter, services, backends }
    }

    fn lets_through<A: Address>(&self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        let is_among = |indices: &Option<BTreeSet<u32>>, index| {
            indices.as_ref().is_none_or(|indices| indices.contains(&index))
        };
        flow.direction == Direction::ToBackend as u8
            && flow.service != CHECK_SERVICE
            && is_among(&self.services, flow.service)
            && is_among(&self.backends, flow.backend)
            && self.filter.client.is_none_or(|net| net.contains(&key.source.into()))
            && self
                .filter
                .state
                .as_ref()
                .is_none_or(|state| *state == flow.state.name(key.protocol))
    }
}
