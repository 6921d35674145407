//! The way of most packets: of a flow that was looked up lately, with headers of the usual lengths.
//!
//! What is read stays in registers, and is compared with what it is in nearly every packet. Whatever differs goes the long way,
//! untouched, which finds out why, and looks up what has to be.

use bytemuck::Zeroable;

use super::{
    Back, Decision, Edits, Family, FamilyTables, Packet, Reason, Verdict, nat_traces,
    parse::{self, Segment},
    reply_traces,
    traces::{Home, Trace},
    transmit,
};
use crate::abi::{Backend, Flow, PortSet, Settings};

/// What is done with a frame that carries a datagram of the family. Where its flow has to be looked up, or there is anything
/// unusual about it, it is left to the part for that.
#[inline(always)]
pub fn express<A: Family, P: Packet, T: FamilyTables<A>>(packet: &mut P, tables: &T) -> Decision {
    let [.., look_up] = A::STAGES;
    hasten(packet, tables).unwrap_or_else(|| Decision::passing_on(packet, look_up))
}

/// Forwards a frame whose flow needn't be looked up, or tells that it isn't ours. `None`, with the frame as it was: it is neither.
#[inline(always)]
fn hasten<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
) -> Option<Decision> {
    let segment = &mut Segment::zeroed();
    parse::plain(packet, segment)?;
    let ports = tables.port_sets(segment.key.destination_port);
    // Most of what isn't ours ends here.
    if !ports.has(PortSet::Ours) {
        return Some(Decision::refusing(packet, Reason::NoService));
    }
    if !segment.is_usual() {
        return None;
    }
    let settings = &tables.settings()?;
    let now = tables.beat(settings);
    if ports.has(PortSet::Direct)
        && let Some(home) = Trace::new(segment, settings, now).find(tables)
    {
        return forward_directly(packet, tables, settings, segment, home);
    }
    let trace = &nat_traces::link_trace(segment, settings, now);
    // Each kind has a flow of its own: the compiler needn't keep what is the same in all of one.
    let flow = &mut Flow::zeroed();
    if ports.has(PortSet::Nat)
        && let Some(backend) = nat_traces::find(tables, segment, trace, flow)
    {
        return forward(packet, tables, settings, segment, flow, Some(backend));
    }
    let flow = &mut Flow::zeroed();
    reply_traces::find(tables, segment, trace, flow)?;
    forward(packet, tables, settings, segment, flow, None)
}

/// Forwards a segment by direct return, to where its trace says, if nothing is against it.
#[inline(always)]
fn forward_directly<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    settings: &Settings,
    segment: &Segment<A>,
    home: Home,
) -> Option<Decision> {
    let backend = tables.backend(home.backend)?;
    let flow = &mut Flow::zeroed();
    (flow.backend, flow.service) = (home.backend, backend.service);
    flow.forwarding = home.forwarding;
    segment.admit_usual(packet, settings).ok()?;
    transmit::demand(segment, flow, backend, &mut 0).ok()?;
    let sent = transmit::send_directly(packet, tables, segment, flow, backend);
    Some(decision(packet, settings, sent))
}

/// Forwards a segment whose replies pass through us, if nothing is against it.
#[inline(always)]
fn forward<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    settings: &Settings,
    segment: &Segment<A>,
    flow: &Flow<A>,
    backend: Option<&Backend>,
) -> Option<Decision> {
    segment.admit_usual(packet, settings).ok()?;
    let reason = match backend {
        Some(backend) => {
            transmit::demand(segment, flow, backend, &mut 0).ok()?;
            Reason::ToBackend
        }
        None => {
            transmit::demand_short(segment, flow, &mut 0).ok()?;
            Reason::ToClient
        }
    };
    let sent = transmit::send(packet, tables, segment, flow, backend, reason, Edits::NONE);
    Some(decision(packet, settings, sent))
}

#[inline(always)]
fn decision<P: Packet>(
    packet: &mut P,
    settings: &Settings,
    sent: Result<Verdict, Reason>,
) -> Decision {
    let mut verdict = sent.unwrap_or_else(Verdict::refusing);
    verdict.back = Back::of(settings);
    Decision::made(packet, verdict)
}
