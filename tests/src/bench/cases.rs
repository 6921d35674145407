//! What is measured of packets.

use std::{fmt, net::Ipv4Addr};

use lb_common::{abi::Forwarding, datapath::Reason};

use crate::{
    repeat::Yardstick,
    world::{OTHER_FORWARDINGS, Socket, VIP, VIP_IPV6, backend_address},
};

/// Which packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packets {
    /// From clients, in established flows.
    Hit,
    /// From backends, in established flows.
    Reply,
    /// The first of a flow.
    New,
    /// For no service and no flow.
    NotOurs,
    /// As [`Packets::Hit`], or where flows are recorded as [`Packets::New`], but for a program that does a part of it alone.
    Least(Yardstick),
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    /// How the service forwards.
    pub(super) forwarding: Forwarding,
    /// Whether it is one on IPv6.
    pub(super) is_ipv6: bool,
    /// Which packets.
    pub(super) packets: Packets,
    /// Of how many flows, in turn.
    pub(super) flows: u32,
    /// To how many of the services that there are, in turn.
    pub(super) services: u32,
}

/// Most flows.
pub(super) const MOST_FLOWS: u32 = 524_288;
/// How many there are in turn.
const FLOWS: [u32; 4] = [1, 1024, 65_536, MOST_FLOWS];
const NEW_FLOWS: u32 = 220_000;
/// To how many services flows are where they are to many, and how many flows that are. All those services are always there.
const MANY_SERVICES: u32 = 10_000;
const TO_MANY_SERVICES: u32 = 65_536;
impl Case {
    /// The service that it is about.
    pub(super) fn service(self) -> Socket {
        if self.packets == Packets::NotOurs {
            let (address, _) = if self.is_ipv6 { VIP_IPV6 } else { VIP };
            return (address, 22);
        }
        if self.forwarding == Forwarding::FullNat {
            return if self.is_ipv6 { VIP_IPV6 } else { VIP };
        }
        let matches = |(forwarding, vip, backend): &(Forwarding, Socket, u32)| {
            *forwarding == self.forwarding
                && vip.0.is_ipv6() == self.is_ipv6
                && backend_address(*backend).0.is_ipv6() == self.is_ipv6
        };
        OTHER_FORWARDINGS.into_iter().find(matches).map_or(VIP, |(_, vip, _)| vip)
    }

    /// Whether each packet is a flow's first.
    pub(super) fn is_new(self) -> bool {
        [Packets::New, Packets::Least(Yardstick::Record)].contains(&self.packets)
    }

    pub(super) fn reason(self) -> Reason {
        match self.packets {
            Packets::Hit | Packets::Least(_) => Reason::ToBackend,
            Packets::Reply => Reason::ToClient,
            Packets::New => Reason::Opened,
            Packets::NotOurs => Reason::NoService,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.is_ipv6 { "IPv6" } else { "IPv4" };
        match self.packets {
            Packets::NotOurs => return write!(formatter, "not ours: {family}"),
            Packets::Least(Yardstick::Record) => {
                return write!(formatter, "the least: recording a flow");
            }
            Packets::Least(Yardstick::Balance) => write!(formatter, "the least: balancing")?,
            Packets::Least(_) => write!(formatter, "the least: one look into 4 MB")?,
            Packets::Hit => write!(formatter, "{} {family}: to backends", self.forwarding.name())?,
            Packets::Reply => write!(formatter, "{} {family}: replies", self.forwarding.name())?,
            Packets::New => {
                return write!(
                    formatter,
                    "{} {family}: first packet of a flow",
                    self.forwarding.name()
                );
            }
        }
        match self.flows {
            1 => write!(formatter, ", 1 flow")?,
            flows => write!(formatter, ", {flows} flows")?,
        }
        match self.services {
            1 => Ok(()),
            services => write!(formatter, " to {services} services"),
        }
    }
}

/// Everything that is measured.
pub(super) fn cases() -> Vec<Case> {
    let forwardings =
        [Forwarding::FullNat, Forwarding::Nat, Forwarding::Dsr, Forwarding::Ipip, Forwarding::Gue];
    let mut cases = Vec::new();
    let mut least = |yardstick, flows: &[u32]| {
        cases.extend(flows.iter().map(|flows| Case {
            forwarding: Forwarding::Dsr,
            is_ipv6: false,
            packets: Packets::Least(yardstick),
            flows: *flows,
            services: 1,
        }));
    };
    least(Yardstick::Look, &FLOWS);
    least(Yardstick::Balance, &FLOWS);
    least(Yardstick::Record, &[NEW_FLOWS]);
    for is_ipv6 in [false, true] {
        for forwarding in forwardings {
            let mut add = |packets, flows: &[u32]| {
                cases.extend(flows.iter().map(|flows| Case {
                    forwarding,
                    is_ipv6,
                    packets,
                    flows: *flows,
                    services: 1,
                }));
            };
            add(Packets::Hit, &FLOWS);
            if forwarding.sees_replies() {
                add(Packets::Reply, &FLOWS);
            }
            add(Packets::New, &[NEW_FLOWS]);
        }
        cases.push(Case {
            forwarding: Forwarding::FullNat,
            is_ipv6,
            packets: Packets::NotOurs,
            flows: 1,
            services: 1,
        });
    }
    cases.extend([Forwarding::FullNat, Forwarding::Dsr].map(|forwarding| Case {
        forwarding,
        is_ipv6: false,
        packets: Packets::Hit,
        flows: TO_MANY_SERVICES,
        services: MANY_SERVICES,
    }));
    cases
}

/// The service that a flow is to: the first, or one of as many on IPv4 that differ from it by their address.
pub(super) fn service_of(first: Socket, number: u32, services: u32) -> Socket {
    match number % services {
        0 => first,
        other => (Ipv4Addr::from(0x0a40_0000 + other).into(), first.1),
    }
}
