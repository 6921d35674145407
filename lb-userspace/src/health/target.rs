//! Where a backend is checked, and how it is reached there.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_common::{
    abi::{Forwarding, Link},
    wire::Vlans,
};
use tokio::net::TcpStream;

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
    ) -> io::Result<Led> {
        let source = vip.source.ok_or_else(|| {
            io::Error::other("this host has no other address of its family to check from")
        })?;
        let socket = self.vantage.socket(source).await?;
        socket.set_zero_linger()?;
        let link = Link {
            interface: self.vantage.interface,
            station: self.vantage.station,
            own: self.vantage.station,
            vlans: Vlans::NONE,
        };
        let (client, vip) = (socket.local_addr()?, vip.address);
        let route = Route { client, vip, backend, forwarding, link };
        let detour = self.detours.lead(route).map_err(io::Error::other)?;
        let stream = socket.connect(vip).await?;
        Ok(Led { stream, detour })
    }
}
