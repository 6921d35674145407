//! Single flows.

use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;
use lb_common::{
    abi::{Direction, Flow, FlowKey},
    wire::Ipv4Address,
};
use serde::Serialize;

use super::Overview;
use crate::dataplane::{self, DataplaneError, Maps};

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names of the documented JSON fields")]
pub struct FlowRecord {
    pub service: String,
    pub backend: String,
    pub protocol: &'static str,
    pub client: SocketAddrV4,
    pub vip: SocketAddrV4,
    pub nat: Option<SocketAddrV4>,
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
    pub client: Option<Ipv4Net>,
    /// The state's word.
    pub state: Option<String>,
    /// How many at most.
    pub limit: Option<usize>,
}

type Key = FlowKey<Ipv4Address>;
type Entry = Flow<Ipv4Address>;

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
    let limit = filter.limit.unwrap_or(usize::MAX);
    let mut found: Vec<(Key, Entry)> = Vec::new();
    let mut visit = |key: &Key, flow: &Entry| {
        if found.len() < limit
            && flow.direction == Direction::ToBackend as u8
            && matches(filter, overview, key, flow)
        {
            found.push((*key, *flow));
        }
    };
    maps.for_each_flow(&mut visit)?;
    maps.for_each_embryonic(&mut visit)?;
    let now = dataplane::now();
    let record = |(key, flow): &(Key, Entry)| {
        let table = if flow.state.is_half_open() { &maps.embryonic } else { &maps.flows };
        let idle = now.since(flow.last_seen);
        let reply = table.get(&flow.peer_key(key.protocol), 0);
        let idle = reply.map_or(idle, |reply| idle.min(now.since(reply.last_seen)));
        FlowRecord {
            service: overview.service_name(flow.service),
            backend: overview.backend_name(flow.backend),
            protocol: "tcp",
            client: SocketAddrV4::new(key.source.into(), key.source_port.get()),
            vip: SocketAddrV4::new(key.destination.into(), key.destination_port.get()),
            nat: flow
                .forwarding
                .hides_client()
                .then(|| SocketAddrV4::new(flow.source.into(), flow.source_port.get())),
            state: flow.state.name(),
            age_s: dataplane::seconds(now.since(flow.opened)),
            idle_s: dataplane::seconds(idle),
        }
    };
    Ok(found.iter().map(record).collect())
}

fn matches(filter: &FlowFilter, overview: &Overview, key: &Key, flow: &Entry) -> bool {
    let is = |wanted: &Option<String>, name: &dyn Fn() -> String| {
        wanted.as_ref().is_none_or(|wanted| *wanted == name())
    };
    filter.client.is_none_or(|net| net.contains(&Ipv4Addr::from(key.source)))
        && is(&filter.state, &|| flow.state.name().to_owned())
        && is(&filter.service, &|| overview.service_name(flow.service))
        && is(&filter.backend, &|| overview.backend_name(flow.backend))
}
