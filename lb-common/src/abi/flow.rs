//! Flows: one tracked connection, an entry a direction.

use bytemuck::{Pod, Zeroable};

use super::{Forwarding, LocalMac, Tick, same_words};
use crate::wire::{Address, ChecksumDelta, MacAddress, NetworkU16, PROTOCOL_UDP, Vlans};

/// What identifies the packets of one direction of a flow, as they arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Zeroable)]
#[repr(C)]
pub struct FlowKey<A> {
    /// Sender.
    pub source: A,
    /// Receiver.
    pub destination: A,
    /// Sender's port.
    pub source_port: NetworkU16,
    /// Receiver's port.
    pub destination_port: NetworkU16,
    /// Protocol number in the low byte; the other bytes are zero.
    pub protocol: u32,
}

// SAFETY: repr(C) of addresses (4 or 16 bytes, aligned to 4), and integers that follow without
// padding; the sizes are asserted in the parent module.
unsafe impl<A: Address> Pod for FlowKey<A> {}

/// What is done with the packets of one direction, and what is known of the flow.
#[derive(Clone, Copy, Debug, PartialEq, Zeroable)]
#[repr(C, align(8))]
pub struct Flow<A> {
    /// Sender after the rewrite.
    pub source: A,
    /// Receiver after the rewrite.
    pub destination: A,
    /// Sender's port after the rewrite.
    pub source_port: NetworkU16,
    /// Receiver's port after the rewrite.
    pub destination_port: NetworkU16,
    /// What the rewrite does to the IP header's checksum, counting down the time to live included.
    pub network_delta: ChecksumDelta,
    /// What the rewrite does to the transport header's checksum.
    pub transport_delta: ChecksumDelta,
    /// Index of the backend.
    pub backend: u32,
    /// Index of the service.
    pub service: u32,
    /// When the flow's first packet came. In the direction to the client, once the client of a TCP connection has sent FIN:
    /// the number by which the backend acknowledges that, see [`Self::end_of_client`].
    pub opened: Tick,
    /// When this direction's newest packet came.
    pub last_seen: Tick,
    /// In the direction to the client, and once the handshake is complete: what TCP's timestamps to the
    /// backend say more than the client's own, by full NAT. Before that, in the direction to the backend:
    /// when the newest SYN came, as a [`super::Stamp`]; in state [`FlowState::ANSWERED`], the
    /// acknowledgement of the backend's SYN. Where replies don't pass through us, the sequence number that
    /// follows the client's SYN.
    pub number: u32,
    /// Where the client is reached.
    pub link: Link,
    /// See [`super::Direction`].
    pub direction: u8,
    /// Where the connection stands.
    pub state: FlowState,
    /// Which ends have sent FIN or RST: bits of [`finished`]. Of a half-open handshake: how many backends
    /// were tried before.
    pub finished: u8,
    /// How its packets reach the backend.
    pub forwarding: Forwarding,
    /// Longest IP datagram that can be sent to the client, in bytes: the MTU of its link. Zero: no limit is
    /// known.
    pub maximum_datagram: u16,
    /// Index of the address that full NAT sends from.
    pub nat_source: u16,
}

// SAFETY: as of [`FlowKey`]; both sizes are multiples of the alignment.
unsafe impl<A: Address> Pod for Flow<A> {}

/// Stands for a health check in [`Flow::service`]: its packets are no service's, and aren't counted as
/// such.
pub const CHECK_SERVICE: u32 = u32::MAX;

/// Bits of [`Flow::finished`].
pub mod finished {
    /// The client has sent FIN.
    pub const CLIENT: u8 = 1;
    /// The backend has sent FIN.
    pub const BACKEND: u8 = 2;
    /// The newest that came from the client was RST.
    pub const CLIENT_RESET: u8 = 4;
    /// The newest that came from the backend was RST.
    pub const BACKEND_RESET: u8 = 8;
    /// The backend has acknowledged the client's FIN.
    pub const CLIENT_ACKNOWLEDGED: u8 = 16;
    /// What nobody but the ends themselves can have brought about, by either bit: the backend has sent FIN, and
    /// acknowledged the client's.
    pub const BOTH_SURELY: u8 = BACKEND | CLIENT_ACKNOWLEDGED;

    /// Whether a connection is over that is at `finished`, whoever may have sent segments in its client's name.
    #[inline(always)]
    pub const fn surely(finished: u8) -> bool {
        finished & BACKEND_RESET != 0 || finished & BOTH_SURELY == BOTH_SURELY
    }
}

impl<A: Address> Flow<A> {
    /// What is added to TCP's timestamps on the way to the backend; see [`Self::number`].
    #[inline(always)]
    pub const fn timestamp_shift(&self) -> u32 {
        if self.forwarding.hides_client() { self.number } else { 0 }
    }

    /// In the direction to the client, once the client has sent FIN: the number by which the backend acknowledges it
    /// (RFC 9293, section 3.4).
    #[inline(always)]
    pub const fn end_of_client(&self) -> u32 {
        self.opened.number()
    }

    /// Whether the connection is over, whoever may have sent segments in its client's name.
    #[inline(always)]
    pub const fn is_surely_over(&self) -> bool {
        !self.state.is_half_open() && finished::surely(self.finished)
    }

    /// Whether it counts as one of its backend's connections.
    #[inline(always)]
    pub const fn is_under_way(&self) -> bool {
        self.state.is_under_way(self.forwarding)
    }

    /// The key under which the other direction is tracked: the answer to what this one becomes.
    #[inline(always)]
    pub fn peer_key(&self, protocol: u32) -> FlowKey<A> {
        FlowKey {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol,
        }
    }
}

/// Where a TCP connection stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct FlowState(u8);

impl FlowState {
    /// The client's SYN was forwarded; the handshake isn't complete.
    pub const SYN: Self = Self(1);
    /// The handshake is complete.
    pub const ESTABLISHED: Self = Self(2);
    /// One end has sent FIN.
    pub const CLOSING: Self = Self(3);
    /// Both ends have sent FIN, and the backend has acknowledged the client's; or one of them RST.
    pub const CLOSED: Self = Self(4);
    /// The backend has answered the client's SYN; the handshake isn't complete.
    pub const ANSWERED: Self = Self(5);
    /// The backend has refused, and the client wasn't told: its next SYN goes elsewhere.
    pub const REFUSED: Self = Self(6);

    /// Where a connection stands whose handshake is complete, by the bits of [`finished`].
    #[inline(always)]
    pub const fn after(finished: u8) -> Self {
        let resets = finished::CLIENT_RESET | finished::BACKEND_RESET;
        if finished & resets != 0 || finished::surely(finished) {
            Self::CLOSED
        } else if finished != 0 {
            Self::CLOSING
        } else {
            Self::ESTABLISHED
        }
    }

    /// Whether the handshake isn't complete.
    #[inline(always)]
    pub const fn is_half_open(self) -> bool {
        matches!(self, Self::SYN | Self::ANSWERED | Self::REFUSED)
    }

    /// Whether a flow counts as one of its backend's connections. By direct return, nothing tells of a backend's end: the
    /// client's must do.
    #[inline(always)]
    pub const fn is_under_way(self, forwarding: Forwarding) -> bool {
        match self {
            Self::SYN | Self::ANSWERED | Self::ESTABLISHED => true,
            Self::CLOSING => forwarding.sees_replies(),
            _ => false,
        }
    }

    /// The word for it in the CLI and in JSON, of a flow of the protocol.
    pub fn name(self, protocol: u32) -> &'static str {
        match self {
            _ if protocol == u32::from(PROTOCOL_UDP) => "udp",
            Self::SYN | Self::ANSWERED | Self::REFUSED => "syn",
            Self::ESTABLISHED => "established",
            Self::CLOSING => "closing",
            Self::CLOSED => "closed",
            _ => "invalid",
        }
    }
}

/// How a station is reached on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Link {
    /// Interface index.
    pub interface: u32,
    /// Our hardware address on that link. It and the station's stand as at the beginning of a frame from there.
    pub own: MacAddress,
    /// The station's hardware address.
    pub station: MacAddress,
    /// The VLANs that the link is, on the interface.
    pub vlans: Vlans,
}

/// Where frames go next. No interface: it isn't known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Hop {
    /// Interface index.
    pub interface: u32,
    /// The station's hardware address. It and ours stand as at the beginning of a frame to there.
    pub station: MacAddress,
    /// Our hardware address on that link.
    pub own: MacAddress,
    /// The VLANs that the link is, on the interface.
    pub vlans: Vlans,
}

impl Hop {
    /// The beginning of a frame to there.
    #[inline(always)]
    pub fn stations(&self) -> Stations {
        let [_, stations @ .., _]: [u32; 5] = bytemuck::cast(*self);
        stations
    }
}

/// The hardware addresses at the beginning of a frame, in words: its receiver's, and its sender's.
pub type Stations = [u32; 3];

impl Link {
    /// That of a frame which came in on an interface, in VLANs, and begins like this.
    #[inline(always)]
    pub fn of_frame(interface: u32, [first, second, third]: Stations, vlans: Vlans) -> Self {
        bytemuck::cast([interface, first, second, third, bytemuck::cast(vlans)])
    }

    /// Our station on it.
    #[inline(always)]
    pub const fn local_mac(self) -> LocalMac {
        let Self { interface, own, vlans, .. } = self;
        LocalMac { interface, address: own, reserved: 0, vlans }
    }

    /// Where a frame goes that goes back there.
    #[inline(always)]
    pub const fn back(self) -> Hop {
        let Self { interface, own, station, vlans } = self;
        Hop { interface, station, own, vlans }
    }

    /// Whether both name the same station on the same link.
    #[inline(always)]
    pub fn same(self, other: Self) -> bool {
        same_words::<5>(&bytemuck::cast(self), &bytemuck::cast(other))
    }
}
