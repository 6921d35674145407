//! Where a backend is checked, and how it is reached there.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    task::Poll,
};

use futures_util::poll;
use lb_common::{
    abi::{Forwarding, Link},
    wire::Vlans,
};
use tokio::net::{TcpSocket, TcpStream};

use super::{Cause, Failure, words};
use crate::{
    dataplane::{Detour, Detours, Route},
    netlink::Vantage,
};

/// Where a backend is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// At its own address.
    Own(SocketAddr),
    /// At each of the service's addresses, the way that its traffic takes: where replies go straight to
    /// the client, a backend that lacks one of them answers nobody.
    Vips {
        /// Index of the backend.
        backend: u32,
        /// How packets reach it.
        forwarding: Forwarding,
        /// The addresses.
        vips: Vec<Vip>,
    },
}

/// One of a service's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vip {
    /// The address and port.
    pub address: SocketAddr,
    /// The address of this host that the backend can answer to; `None`: there is none.
    pub source: Option<IpAddr>,
}

/// What it takes to check at services' addresses.
pub struct Passage {
    /// Where the checks come from.
    pub vantage: Vantage,
    /// What leads them to one backend.
    pub detours: Arc<Detours>,
}

/// A connection to a service's address on one backend. It is led there for as long as this is kept.
pub(super) struct Led {
    // Dropped first, so that its end is led there as well.
    pub(super) stream: TcpStream,
    pub(super) detour: Detour,
}

impl Passage {
    /// Connects to a service's address on one backend. When it is dropped, the connection is reset, so
    /// that nothing of it is left.
    pub(super) async fn connect(
        &self,
        backend: u32,
        forwarding: Forwarding,
        vip: Vip,
    ) -> Result<Led, Failure> {
        let source = vip.source.ok_or_else(|| {
            Failure::local(&"this host has no other address of its family to check from")
        })?;
        let socket = self.vantage.socket(source).await.map_err(|error| Failure::local(&error))?;
        socket.set_zero_linger().map_err(|error| Failure::local(&error))?;
        let link = Link {
            interface: self.vantage.interface,
            station: self.vantage.station,
            own: self.vantage.station,
            vlans: Vlans::NONE,
        };
        let (client, vip) =
            (socket.local_addr().map_err(|error| Failure::local(&error))?, vip.address);
        let route = Route { client, vip, backend, forwarding, link };
        let detour = self.detours.lead(route).map_err(|error| Failure::local(&error))?;
        let stream = connect(socket, vip).await?;
        Ok(Led { stream, detour })
    }
}

/// Connects from whatever address the kernel chooses.
pub(super) async fn connect_from_anywhere(address: SocketAddr) -> Result<TcpStream, Failure> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    connect(socket.map_err(|error| Failure::local(&error))?, address).await
}

/// Connects. What the kernel refuses at once, before it has sent anything, is mostly this host's own fault; what comes
/// later was said by the backend, or by a router or a firewall on the way to it.
async fn connect(socket: TcpSocket, address: SocketAddr) -> Result<TcpStream, Failure> {
    let mut connecting = pin!(socket.connect(address));
    match poll!(connecting.as_mut()) {
        Poll::Ready(connected) => connected.map_err(|error| own_words(&error)),
        Poll::Pending => connecting.await.map_err(|error| words(&error)),
    }
}

/// An error of a connection that wasn't begun.
fn own_words(error: &io::Error) -> Failure {
    let failure = words(error);
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable => failure,
        _ => Failure { cause: Cause::Local, ..failure },
    }
}
