//! Leads health checks past the rings, the way that a backend's traffic takes.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use aya::maps::{HashMap, MapData, MapError};
use lb_common::{
    abi::{
        CHECK_SERVICE, Direction, Flow, FlowKey, FlowState, Forwarding, Link, PortSet,
        maps as names,
    },
    wire::{Address, Ipv4Address, Ipv4Header, Ipv6Address, NetworkU16, PROTOCOL_TCP},
};

use super::{DataplaneError, Pins, PortSets, maps, now};

/// The tables of flows, to put checks into, and the ports that packets of ours are sent to.
pub struct Detours {
    ipv4: Mutex<HashMap<MapData, FlowKey<Ipv4Address>, Flow<Ipv4Address>>>,
    ipv6: Mutex<HashMap<MapData, FlowKey<Ipv6Address>, Flow<Ipv6Address>>>,
    ports: PortSets,
}

/// A connection that is led to one backend.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// Who checks.
    pub client: SocketAddr,
    /// What is checked: an address and port of a service.
    pub vip: SocketAddr,
    /// Index of the backend.
    pub backend: u32,
    /// How its packets reach the backend.
    pub forwarding: Forwarding,
    /// Where the client is.
    pub link: Link,
}

/// Leads a connection until it is dropped.
pub struct Detour {
    detours: Arc<Detours>,
    route: Route,
}

impl Detours {
    /// Opens the pinned tables.
    ///
    /// # Errors
    ///
    /// They aren't there, or the user may not.
    pub fn open(pins: &Pins) -> Result<Self, DataplaneError> {
        Ok(Self {
            ipv4: Mutex::new(maps::open(pins, names::FLOWS)?),
            ipv6: Mutex::new(maps::open(pins, names::FLOWS_IPV6)?),
            ports: PortSets::new(maps::data(pins, names::PORT_SETS)?)?,
        })
    }

    /// Leads a connection's packets to the backend, and what it answers to the client.
    ///
    /// # Errors
    ///
    /// The table is full.
    pub fn lead(self: &Arc<Self>, route: Route) -> Result<Detour, DataplaneError> {
        // What is checked needn't be a port that anything is bound to.
        self.ports.add(PortSet::Ours, [route.client.port(), route.vip.port()]);
        let done = match (route.client.ip(), route.vip.ip()) {
            (IpAddr::V4(client), IpAddr::V4(vip)) => {
                insert(&self.ipv4, &route, client.into(), vip.into())
            }
            (IpAddr::V6(client), IpAddr::V6(vip)) => {
                insert(&self.ipv6, &route, client.into(), vip.into())
            }
            _ => Ok(()),
        };
        // What was put in goes with this, also where the rest failed.
        let detour = Detour { detours: Arc::clone(self), route };
        done.map_err(DataplaneError::map(names::FLOWS))?;
        Ok(detour)
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        match (self.route.client.ip(), self.route.vip.ip()) {
            (IpAddr::V4(client), IpAddr::V4(vip)) => {
                remove(&self.detours.ipv4, &self.route, client.into(), vip.into());
            }
            (IpAddr::V6(client), IpAddr::V6(vip)) => {
                remove(&self.detours.ipv6, &self.route, client.into(), vip.into());
            }
            _ => {}
        }
    }
}

type Flows<A> = Mutex<HashMap<MapData, FlowKey<A>, Flow<A>>>;

/// The direction from one address to another.
fn key<A>(from: (A, SocketAddr), to: (A, SocketAddr)) -> FlowKey<A> {
    FlowKey {
        source: from.0,
        destination: to.0,
        source_port: NetworkU16::new(from.1.port()),
        destination_port: NetworkU16::new(to.1.port()),
        protocol: PROTOCOL_TCP.into(),
    }
}

/// Puts in both directions, neither of which changes an address or a port.
fn insert<A: Address>(flows: &Flows<A>, route: &Route, client: A, vip: A) -> Result<(), MapError> {
    let (client, vip) = ((client, route.client), (vip, route.vip));
    let flow = |key: &FlowKey<A>, direction: Direction| {
        let mut flow: Flow<A> = bytemuck::Zeroable::zeroed();
        flow.source = key.source;
        flow.destination = key.destination;
        flow.source_port = key.source_port;
        flow.destination_port = key.destination_port;
        flow.network_delta = Ipv4Header::TIME_TO_LIVE_DELTA;
        flow.backend = route.backend;
        flow.service = CHECK_SERVICE;
        (flow.opened, flow.last_seen) = (now(), now());
        flow.link = route.link;
        flow.direction = direction as u8;
        flow.state = FlowState::ESTABLISHED;
        flow.forwarding = route.forwarding;
        flow
    };
    let mut flows = flows.lock().unwrap_or_else(PoisonError::into_inner);
    let request = key(client, vip);
    flows.insert(request, flow(&request, Direction::ToBackend), 0)?;
    let reply = key(vip, client);
    flows.insert(reply, flow(&reply, Direction::ToClient), 0)
}

fn remove<A: Address>(flows: &Flows<A>, route: &Route, client: A, vip: A) {
    let (client, vip) = ((client, route.client), (vip, route.vip));
    let mut flows = flows.lock().unwrap_or_else(PoisonError::into_inner);
    for key in [key(client, vip), key(vip, client)] {
        // What isn't there any longer is as good as removed.
        let _: Result<(), MapError> = flows.remove(&key);
    }
}
