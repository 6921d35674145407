//! What the program did with a packet, and why.

use bytemuck::Zeroable;

use crate::{
    abi::{Hop, Settings},
    wire::Vlans,
};

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It goes on to the host's network stack, unchanged.
    Pass,
    /// It goes no further.
    Drop,
    /// It was rewritten, or turned into an answer, and goes out on [`Verdict::egress`].
    Transmit,
}

/// What sort of reason it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The packet was sent on.
    Forwarded,
    /// Not ours to forward: the host's stack gets it unchanged.
    Passed,
    /// It was for a service or a flow, and can't or mustn't be forwarded.
    Refused,
    /// Should never be seen: our own tables are wrong.
    Error,
}

impl Kind {
    /// The word for it in the CLI and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Passed => "passed",
            Self::Refused => "refused",
            Self::Error => "error",
        }
    }
}

/// The outcome for one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Verdict {
    /// What happened and why.
    pub reason: Reason,
    /// Index of the interface that it leaves by, where it is transmitted; else 0.
    pub egress: u32,
    /// The VLANs that it leaves in.
    pub vlans: Vlans,
    /// How it leaves by the interface that it came in on.
    pub back: Back,
    /// What is to be changed in its options.
    pub edits: Edits,
}

/// How a frame leaves by the interface that it came in on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Back {
    /// As the settings say, which have to be looked up for that.
    AsSet,
    /// By `XDP_TX`.
    Transmitted,
    /// As by any other: [`Settings::redirect_always`].
    Redirected,
}

impl Back {
    /// As the settings say.
    #[inline(always)]
    pub const fn of(settings: &Settings) -> Self {
        if settings.redirect_always == 0 { Self::Transmitted } else { Self::Redirected }
    }
}

/// What is to be changed in the options of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Zeroable)]
#[repr(C)]
pub struct Edits {
    /// What is added to a timestamp; zero: nothing.
    pub shift: u32,
    /// Which one: its offset in the option's data, in bytes.
    pub field: u16,
    /// Offset of the timestamp in the frame; zero: there is none, or it isn't known yet.
    pub timestamp_place: u16,
    /// What a SYN may at most say of how long segments may be, in bytes; zero: anything.
    pub maximum_segment: u16,
    /// Offset of what has to be lowered to that; zero: nothing, or it isn't known yet.
    pub segment_place: u16,
    /// Offset of the TCP header in the frame, in bytes.
    pub transport_offset: u16,
    /// How far in the header it was looked, in bytes.
    pub walked: u16,
    /// 1: the places are known.
    pub looked: u32,
}

// SAFETY: zeros are the first reason and the first way back, and all of the rest may be zeros.
unsafe impl Zeroable for Verdict {}

impl Edits {
    /// None.
    pub const NONE: Self = Self {
        shift: 0,
        field: 0,
        timestamp_place: 0,
        maximum_segment: 0,
        segment_place: 0,
        transport_offset: 0,
        walked: 0,
        looked: 0,
    };

    /// Whether there may be some whose place has to be looked for.
    #[inline(always)]
    pub(super) const fn are_open(&self) -> bool {
        self.looked == 0 && (self.maximum_segment != 0 || self.shift != 0)
    }

    /// Whether there are some whose place is known.
    #[inline(always)]
    pub(super) const fn have_places(&self) -> bool {
        (self.segment_place != 0 && self.maximum_segment != 0)
            || (self.timestamp_place != 0 && self.shift != 0)
    }
}

impl Verdict {
    /// A frame that isn't transmitted.
    #[inline(always)]
    pub const fn refusing(reason: Reason) -> Self {
        Self { reason, egress: 0, vlans: Vlans::NONE, back: Back::AsSet, edits: Edits::NONE }
    }

    /// A frame that is transmitted.
    #[inline(always)]
    pub(super) const fn sending(reason: Reason, hop: Hop) -> Self {
        Self { egress: hop.interface, vlans: hop.vlans, ..Self::refusing(reason) }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident $name:literal $kind:ident $action:ident,)+) => {
        /// Why a packet met its fate. One list that indexes the counters and names the metrics, the
        /// CLI's text and the documentation.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// Every reason, in the order of the counters.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The word for it in metrics, the CLI and JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it means, in a sentence or two.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+),)+ }
            }

            /// What sort of reason it is.
            pub const fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind,)+ }
            }

            /// What becomes of the frame. The one place where a reason turns into an action.
            #[inline(always)]
            pub const fn action(self) -> Action {
                match self { $(Self::$variant => Action::$action,)+ }
            }
        }
    };
}

reasons! {
    /// A client opened a connection and a backend was picked for it.
    Opened "opened" Forwarded Transmit,
    /// By direct return, a client went on with a connection that isn't known, and a backend was picked for
    /// it: the one that it has, if it was opened by another balancer with the same ring.
    Adopted "adopted" Forwarded Transmit,
    /// From the client to the backend, in a flow.
    ToBackend "to_backend" Forwarded Transmit,
    /// From the backend to the client, in a flow.
    ToClient "to_client" Forwarded Transmit,
    /// An ICMP error about a flow, to the end whose datagram it is about.
    IcmpError "icmp_error" Forwarded Transmit,
    /// A fragment other than the first, to where that went.
    Fragment "fragment" Forwarded Transmit,

    /// Neither IP nor tagged: ARP, LLDP and the like.
    NotIp "not_ip" Passed Pass,
    /// It has more than two VLAN tags.
    VlanTagged "vlan_tagged" Passed Pass,
    /// IP that is neither TCP nor UDP: ICMP, VRRP and the like.
    OtherProtocol "other_protocol" Passed Pass,
    /// The frame ends within its Ethernet or IP header.
    ShortFrame "short_frame" Passed Pass,
    /// The IP version isn't the frame's, or the header's length is below 20 bytes.
    BadIpHeader "bad_ip_header" Passed Pass,
    /// The IP length is below the headers', or above the frame's.
    BadIpLength "bad_ip_length" Passed Pass,
    /// The TCP header is cut off, or says a length below 20 bytes or above the segment's.
    BadTcpHeader "bad_tcp_header" Passed Pass,
    /// The UDP header is cut off, or says a length below 8 bytes or above the datagram's.
    BadUdpHeader "bad_udp_header" Passed Pass,
    /// A fragment other than the first, of a datagram whose first wasn't forwarded, or not yet. The host's
    /// stack keeps it for its own datagrams, and drops it after a while.
    LaterFragment "later_fragment" Passed Pass,
    /// For another station: the frame's hardware address isn't ours.
    OtherStation "other_station" Passed Pass,
    /// For no service and no flow: the host's own traffic, such as SSH and health checks.
    NoService "no_service" Passed Pass,
    /// For a service, but neither in a flow nor opening one. The host's stack answers with a reset.
    NoFlow "no_flow" Passed Pass,

    /// No backend takes new flows. The host's stack refuses the connection with a reset, or a datagram
    /// by ICMP.
    NoBackend "no_backend" Refused Pass,
    /// No backend takes new flows, and by `on_all_down = "drop"` nobody is told.
    AllDown "all_down" Refused Drop,
    /// The backend is down. By `on_down = "reset"` the client is told by a reset.
    BackendDown "backend_down" Refused Transmit,
    /// A backend refused a connection: the client isn't told, and its next SYN goes to another one.
    RefusalWithheld "refusal_withheld" Refused Drop,
    /// The service's `allow` and `deny` don't let the client's address in.
    AccessDenied "access_denied" Refused Drop,
    /// The client's address sends SYNs faster than `limits.syn_rate_per_source`.
    RateLimited "rate_limited" Refused Drop,
    /// The IP header's checksum is wrong.
    BadIpChecksum "bad_ip_checksum" Refused Drop,
    /// No hop is left: the time to live is 1 or 0.
    TimeToLiveExpired "ttl_expired" Refused Drop,
    /// The datagram is longer than any interface's MTU: segments were merged before the program saw
    /// them (LRO, GRO or TSO in generic mode). Or it is an ICMP error or a later fragment, which aren't
    /// answered, and longer than the MTU on the way to the backend.
    TooBig "too_big" Refused Drop,
    /// The datagram is longer than the MTU on the way to the client, or to the backend, with the outer header
    /// where there is one. Its sender is told so by ICMP.
    NeedsFragmentation "needs_fragmentation" Refused Transmit,
    /// Flags that no TCP sends: SYN with FIN or RST, or none of SYN, ACK, FIN and RST.
    InvalidFlags "invalid_flags" Refused Drop,
    /// UDP over IPv6 without a checksum, which no receiver may take.
    NoChecksum "no_checksum" Refused Drop,
    /// A source address that can't be on a wire: 0/8, 127/8, 224/3, `::/127`, `ff00::/8`, an IPv4 address
    /// in IPv6's form, the service's own, or the hardware address of a group.
    InvalidSource "invalid_source" Refused Drop,
    /// The backend's hardware address or interface isn't known yet.
    NextHopUnknown "next_hop_unknown" Refused Drop,
    /// All source ports to the backend are in use.
    NatPortsExhausted "nat_ports_exhausted" Refused Drop,
    /// By `nat`: the client has a connection to the backend from the same port by another service.
    TupleInUse "tuple_in_use" Refused Drop,
    /// The table of flows is full. The client is told by a reset.
    FlowTableFull "flow_table_full" Refused Transmit,
    /// The table of half-open handshakes has no room, though others give way.
    EmbryonicTableFull "embryonic_table_full" Refused Drop,

    /// Two handshakes ended up with one source port; the later one is dropped.
    PortCollision "port_collision" Error Drop,
    /// A table lacks an entry that another one names.
    TablesIncomplete "tables_incomplete" Error Drop,
    /// The driver left no room before the frame for an outer header.
    NoHeadroom "no_headroom" Error Drop,
    /// The interface to send on isn't in the table of interfaces.
    NoEgress "no_egress" Error Drop,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn reasons_are_numbered_in_order_and_named_once() {
        let mut names = HashSet::new();
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(names.insert(reason.name()), "{} stands twice", reason.name());
            assert!(
                reason
                    .name()
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
            );
        }
    }

    #[test]
    fn only_what_is_forwarded_is_transmitted_and_what_is_passed_passes() {
        for reason in Reason::ALL {
            let expected = match reason.kind() {
                Kind::Forwarded => reason.action() == Action::Transmit,
                Kind::Passed => reason.action() == Action::Pass,
                Kind::Refused => {
                    // Only an answer to the sender is transmitted.
                    let answers =
                        [Reason::NeedsFragmentation, Reason::BackendDown, Reason::FlowTableFull]
                            .contains(reason);
                    (reason.action() == Action::Transmit) == answers
                }
                Kind::Error => reason.action() == Action::Drop,
            };
            assert!(expected, "{}", reason.name());
        }
    }
}
