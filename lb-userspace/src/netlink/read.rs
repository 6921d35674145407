//! Reading interfaces, routes and neighbours through rtnetlink (RFC 3549).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use lb_common::wire::{MacAddress, Vlan};
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_connection, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
        link::{
            InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp,
            VlanProtocol, XdpAttached,
        },
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia},
    },
};

use super::{AttachedProgram, Below, Link, Network, NextHop, Unresolved};
use crate::dataplane::Mode;

/// Why the network couldn't be read.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No connection to the kernel.
    #[error("netlink: {0}")]
    Connect(#[from] std::io::Error),
    /// A request failed.
    #[error("netlink: {0}")]
    Request(#[from] rtnetlink::Error),
}

/// A connection to the kernel.
pub struct Reader {
    handle: Handle,
    /// What [`Self::read`] found last.
    routes: BTreeMap<IpAddr, Result<Route, Unresolved>>,
}

/// The way to an address: the next station on it, the interface that leads there, and the address that this host
/// sends from.
#[derive(Clone, Copy, Debug)]
struct Route {
    gateway: IpAddr,
    interface: u32,
    source: IpAddr,
}

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    /// A neighbour.
    Neighbour,
    /// An interface, an address or a route.
    Other,
    /// Nobody knows: the kernel had more to say than there was room for.
    Lost,
}

/// Requests that are on their way at a time; their answers fit the socket's buffer.
const REQUESTS_AT_ONCE: usize = 32;

/// A stream of changes.
///
/// # Errors
///
/// The kernel refuses.
pub(super) fn changes() -> Result<BoxStream<'static, Change>, NetlinkError> {
    // Nothing is asked on this connection, since what it may lose would be awaited in vain.
    let (connection, _, messages) = new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv6Route,
    ])?;
    tokio::spawn(connection);
    let change = |message: &NetlinkMessage<RouteNetlinkMessage>| match message.payload {
        NetlinkPayload::Overrun(_) => Change::Lost,
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewNeighbour(_) | RouteNetlinkMessage::DelNeighbour(_),
        ) => Change::Neighbour,
        _ => Change::Other,
    };
    Ok(messages.map(move |(message, _)| change(&message)).boxed())
}

impl Reader {
    /// Connects, within a tokio runtime.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn connect() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle, routes: BTreeMap::new() })
    }

    /// Reads everything, and how each of the addresses is reached. Where a neighbour isn't known,
    /// the kernel is asked to find it; the answer is seen by a later call.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub async fn read(
        &mut self,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Result<Network, NetlinkError> {
        let mut network = Network { links: self.links().await?, ..Network::default() };
        network.default_interface = self.default_interface().await?;
        network.addresses = self.addresses().await?;
        let addresses: Vec<IpAddr> = addresses.into_iter().collect();
        let handle = &self.handle;
        let ask = move |address| async move { (address, route(handle, address).await) };
        let asked = stream::iter(addresses).map(ask).buffer_unordered(REQUESTS_AT_ONCE);
        self.routes = asked.collect().await;
        network.next_hops = self.next_hops().await?;
        Ok(network)
    }

    /// How each of the addresses is reached that [`Self::read`] was asked for last, if nothing but neighbours has
    /// changed since then. Those that aren't known are asked for as there.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub(super) async fn next_hops(
        &self,
    ) -> Result<BTreeMap<IpAddr, Result<NextHop, Unresolved>>, NetlinkError> {
        let neighbours = self.neighbours().await?;
        let mut next_hops = BTreeMap::new();
        for (address, route) in &self.routes {
            let next_hop = match route {
                Ok(Route { gateway, interface, source }) => {
                    let (gateway, interface, source) = (*gateway, *interface, *source);
                    match neighbours.get(&(interface, gateway)) {
                        Some(station) => {
                            let router = (gateway != *address).then_some(gateway);
                            Ok(NextHop { interface, station: *station, source, router })
                        }
                        None => {
                            self.find_neighbour(interface, gateway).await;
                            Err(Unresolved::NoNeighbour(gateway))
                        }
                    }
                }
                Err(unresolved) => Err(unresolved.clone()),
            };
            next_hops.insert(*address, next_hop);
        }
        Ok(next_hops)
    }

    /// The interfaces.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub async fn links(&self) -> Result<BTreeMap<u32, Link>, NetlinkError> {
        let messages: Vec<LinkMessage> = self.handle.link().get().execute().try_collect().await?;
        Ok(messages.iter().map(|message| (message.header.index, link(message))).collect())
    }

    /// The addresses that interfaces have.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub async fn addresses(&self) -> Result<BTreeSet<(u32, IpAddr)>, NetlinkError> {
        let messages: Vec<AddressMessage> =
            self.handle.address().get().execute().try_collect().await?;
        let address = |message: &AddressMessage| {
            let own = message.attributes.iter().find_map(|attribute| match attribute {
                // What is said of the other end of a link stands in Address.
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            let any = || {
                message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                })
            };
            Some((message.header.index, own.or_else(any)?))
        };
        Ok(messages.iter().filter_map(address).collect())
    }

    async fn default_interface(&self) -> Result<Option<u32>, NetlinkError> {
        let request = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes: Vec<RouteMessage> =
            self.handle.route().get(request).execute().try_collect().await?;
        let is_default = |route: &&RouteMessage| {
            route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast
        };
        let priority = |route: &&RouteMessage| {
            route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Priority(priority) => Some(*priority),
                _ => None,
            })
        };
        let best = routes.iter().filter(is_default).min_by_key(priority);
        Ok(best.and_then(output_interface))
    }

    async fn neighbours(&self) -> Result<BTreeMap<(u32, IpAddr), MacAddress>, NetlinkError> {
        let mut found = BTreeMap::new();
        let mut messages = std::pin::pin!(self.handle.neighbours().get().execute());
        while let Some(message) = messages.try_next().await? {
            if matches!(message.header.state, NeighbourState::Failed | NeighbourState::Incomplete) {
                continue;
            }
            let mut address = None;
            let mut station = None;
            for attribute in &message.attributes {
                match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(destination)) => {
                        address = Some(IpAddr::V4(*destination));
                    }
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(destination)) => {
                        address = Some(IpAddr::V6(*destination));
                    }
                    NeighbourAttribute::LinkLayerAddress(bytes) => station = mac(bytes),
                    _ => {}
                }
            }
            if let (Some(address), Some(station)) = (address, station) {
                found.insert((message.header.ifindex, address), station);
            }
        }
        Ok(found)
    }

    /// Has the kernel find a neighbour's hardware address (`NTF_USE`: as if a packet were sent).
    async fn find_neighbour(&self, interface: u32, address: IpAddr) {
        let request = self
            .handle
            .neighbours()
            .add(interface, address)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        if let Err(error) = request.execute().await {
            tracing::debug!(%address, %error, "asking for a neighbour");
        }
    }
}

/// The way to an address.
async fn route(handle: &Handle, address: IpAddr) -> Result<Route, Unresolved> {
    let request = match address {
        IpAddr::V4(address) => {
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build()
        }
        IpAddr::V6(address) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).build()
        }
    };
    let mut routes = std::pin::pin!(handle.route().get(request).execute());
    let route = routes.try_next().await.ok().flatten().ok_or(Unresolved::NoRoute)?;
    match route.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Err(Unresolved::Own),
        _ => return Err(Unresolved::NoRoute),
    }
    let interface = output_interface(&route).ok_or(Unresolved::NoRoute)?;
    let mut gateway = address;
    let mut source = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Gateway(router) => gateway = ip(router).unwrap_or(gateway),
            RouteAttribute::Via(RouteVia::Inet6(router)) => gateway = IpAddr::V6(*router),
            RouteAttribute::PrefSource(own) => source = ip(own),
            _ => {}
        }
    }
    Ok(Route { gateway, interface, source: source.ok_or(Unresolved::NoRoute)? })
}

pub(super) fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        name: String::new(),
        mac: MacAddress::UNKNOWN,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        below: None,
        is_veth: false,
        xdp: None,
    };
    let mut below = None;
    let mut kind = None;
    let mut vlan = Vlan::NONE;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = mac(bytes).unwrap_or(MacAddress::UNKNOWN),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Link(index) => below = Some(*index),
            LinkAttribute::LinkInfo(info) => {
                for part in info {
                    match part {
                        LinkInfo::Kind(its_kind) => kind = Some(its_kind),
                        LinkInfo::Data(InfoData::Vlan(parts)) => vlan = vlan_of(parts),
                        _ => {}
                    }
                }
            }
            LinkAttribute::Xdp(xdp) => link.xdp = attached_program(xdp),
            _ => {}
        }
    }
    let is_macvlan = kind == Some(&InfoKind::MacVlan);
    let is_vlan = kind == Some(&InfoKind::Vlan) && !vlan.is_none();
    link.below = below.filter(|_| is_macvlan || is_vlan).map(|interface| Below { interface, vlan });
    link.is_veth = kind == Some(&InfoKind::Veth);
    link
}

fn vlan_of(parts: &[InfoVlan]) -> Vlan {
    let number = parts.iter().find_map(|part| match part {
        InfoVlan::Id(number) => Some(*number),
        _ => None,
    });
    let is_service =
        parts.iter().any(|part| matches!(part, InfoVlan::Protocol(VlanProtocol::Ieee8021Ad)));
    number.map_or(Vlan::NONE, |number| Vlan::new(number, is_service))
}

fn attached_program(xdp: &[LinkXdp]) -> Option<AttachedProgram> {
    let mode = xdp.iter().find_map(|part| match part {
        LinkXdp::Attached(XdpAttached::Driver) => Some(Mode::Native),
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some(Mode::Generic),
        _ => None,
    })?;
    let id = xdp.iter().find_map(|part| match part {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    });
    Some(AttachedProgram { mode, id: id.unwrap_or(0) })
}

fn mac(bytes: &[u8]) -> Option<MacAddress> {
    Some(MacAddress::new(bytes.try_into().ok()?))
}

const fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn output_interface(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}
