//! A TCP connection through the balancer, played from both ends.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use lb_common::{
    abi::FlowKey,
    datapath::Reason,
    wire::{Ipv4Address, NetworkU16, PROTOCOL_TCP},
};

use crate::{
    frame::{Segment, flags},
    pair::Pair,
    seen::Seen,
    world::{BACKENDS, BACKENDS_IPV6, OWN_MAC, Socket, backend_address, backend_mac, client_of},
};

/// Sequence number of the backend's SYN.
const BACKEND_SEQUENCE: u32 = 5000;

/// A connection whose SYN was forwarded.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Client's address and port.
    pub client: Socket,
    /// Where the client connects to.
    pub vip: Socket,
    /// Number of the backend that was picked.
    pub backend: u32,
    /// Source that the backend sees.
    pub nat: Socket,
}

impl Connection {
    /// Sends a SYN from the usual client.
    ///
    /// # Errors
    ///
    /// It isn't forwarded as it should be.
    pub fn open(pair: &mut Pair, vip: Socket) -> Result<Self> {
        Self::open_from(pair, client_of(vip.0), vip)
    }

    /// Sends a SYN.
    ///
    /// # Errors
    ///
    /// It isn't forwarded as it should be.
    pub fn open_from(pair: &mut Pair, client: Socket, vip: Socket) -> Result<Self> {
        Self::from_syn(pair, client, vip, Reason::Opened)
    }

    /// Sends the SYN of a connection again.
    ///
    /// # Errors
    ///
    /// It isn't forwarded as it should be.
    pub fn again(pair: &mut Pair, client: Socket, vip: Socket) -> Result<Self> {
        Self::from_syn(pair, client, vip, Reason::ToBackend)
    }

    fn from_syn(pair: &mut Pair, client: Socket, vip: Socket, reason: Reason) -> Result<Self> {
        let outcome = pair.expect("SYN", &Segment::syn(client, vip).build(), reason)?;
        let seen = Seen::new(&outcome.frame);
        let mut backends = BACKENDS.into_iter().chain(BACKENDS_IPV6);
        let backend = backends.find(|index| backend_address(*index) == seen.destination);
        let Some(backend) = backend else { anyhow::bail!("no backend: {seen:?}") };
        ensure!(seen.destination_mac == backend_mac(backend), "{seen:?}");
        ensure!(outcome.redirected == (backend == 3), "{outcome:?}");
        Ok(Self { client, vip, backend, nat: seen.source })
    }

    /// Completes the handshake.
    ///
    /// # Errors
    ///
    /// A segment isn't forwarded as it should be.
    pub fn establish(&self, pair: &mut Pair) -> Result<()> {
        self.reply(pair, "SYN-ACK", &self.syn_ack())?;
        self.request(pair, "ACK", &self.ack())
    }

    /// The backend's answer to the SYN.
    pub fn syn_ack(&self) -> Segment {
        let mut segment = self.from_backend(flags::SYN | flags::ACK);
        segment.sequence = BACKEND_SEQUENCE;
        segment.acknowledgement = 1001;
        segment
    }

    /// The client's acknowledgement that completes the handshake.
    pub fn ack(&self) -> Segment {
        self.from_client(flags::ACK)
    }

    /// A segment from the client, with some payload.
    pub fn from_client(&self, flags: u8) -> Segment {
        let mut segment = Segment::syn(self.client, self.vip).with_flags(flags);
        segment.sequence = 1001;
        segment.acknowledgement = BACKEND_SEQUENCE + 1;
        segment.payload = b"GET /client/ HTTP/1.1\r\n".to_vec();
        segment
    }

    /// A segment from the backend, with some payload.
    pub fn from_backend(&self, flags: u8) -> Segment {
        let mut segment = Segment::syn(backend_address(self.backend), self.nat).with_flags(flags);
        segment.source_mac = backend_mac(self.backend);
        segment.sequence = BACKEND_SEQUENCE + 1;
        segment.acknowledgement = 1001;
        segment.payload = b"HTTP/1.1 200 OK\r\n".to_vec();
        segment
    }

    /// A segment from the backend that acknowledges the client's FIN, which comes with the usual payload.
    pub fn last_from_backend(&self, flags: u8) -> Segment {
        let mut segment = self.from_backend(flags);
        let fin = self.from_client(flags);
        segment.acknowledgement = fin.sequence + fin.payload.len() as u32 + 1;
        segment
    }

    /// Closes the connection, the backend first.
    ///
    /// # Errors
    ///
    /// A segment isn't forwarded as it should be.
    pub fn close(&self, pair: &mut Pair) -> Result<()> {
        let fin = flags::ACK | flags::FIN;
        self.reply(pair, "FIN", &self.from_backend(fin))?;
        self.request(pair, "FIN", &self.from_client(fin))?;
        self.reply(pair, "last ACK", &self.last_from_backend(flags::ACK))
    }

    /// Demands that a client's segment reaches the backend, and that the backend sees it come from
    /// us.
    ///
    /// # Errors
    ///
    /// It doesn't.
    pub fn request(&self, pair: &mut Pair, what: &str, segment: &Segment) -> Result<()> {
        let outcome = pair.expect(what, &segment.build(), Reason::ToBackend)?;
        let seen = Seen::new(&outcome.frame);
        ensure!(seen.source == self.nat, "{what}: {seen:?}");
        ensure!(seen.destination == backend_address(self.backend), "{what}: {seen:?}");
        ensure!(seen.destination_mac == backend_mac(self.backend), "{what}: {seen:?}");
        Ok(())
    }

    /// Demands that a backend's segment reaches the client, and that the client sees it come from
    /// where it connected to.
    ///
    /// # Errors
    ///
    /// It doesn't.
    pub fn reply(&self, pair: &mut Pair, what: &str, segment: &Segment) -> Result<()> {
        let outcome = pair.expect(what, &segment.build(), Reason::ToClient)?;
        let seen = Seen::new(&outcome.frame);
        ensure!(seen.source == self.vip, "{what}: {seen:?}");
        ensure!(seen.destination == self.client, "{what}: {seen:?}");
        ensure!(seen.source_mac == OWN_MAC, "{what}: {seen:?}");
        Ok(())
    }
}

/// The key of a flow by TCP over IPv4.
///
/// # Panics
///
/// It is over IPv6.
pub fn flow_key(source: Socket, destination: Socket) -> FlowKey<Ipv4Address> {
    FlowKey {
        source: ipv4(source.0),
        destination: ipv4(destination.0),
        source_port: NetworkU16::new(source.1),
        destination_port: NetworkU16::new(destination.1),
        protocol: PROTOCOL_TCP.into(),
    }
}

fn ipv4(address: IpAddr) -> Ipv4Address {
    match address {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => unreachable!("{address}"),
    }
}
