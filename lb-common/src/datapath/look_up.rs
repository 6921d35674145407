//! Packets whose flow is looked up.

use super::{
    Edits, Family, FamilyTables, Packet, Reason, Scratch, Stop, Table, Verdict, established,
    lasting, nat, nat_traces, opening,
    parse::Segment,
    reply_traces, tables, trace_places,
    traces::{self, Trace},
    transmit,
};
use crate::abi::{Entry, Flow, PortSet, Service};

/// Forwards a segment of an established flow.
#[inline(always)]
pub(super) fn forward<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<A>,
) -> Result<Verdict, Stop> {
    let Scratch { segment, flow, longest, trace, service, .. } = scratch;
    let segment = &*segment;
    let ports = tables.port_sets(segment.key.destination_port);
    // Most of what isn't ours ends here.
    if !ports.has(PortSet::Ours) {
        return Err(Reason::NoService.into());
    }
    let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
    let (tick, beat) = (tables.now().tick(), tables.beat(&settings));
    // Of a SYN, the service comes first: the looks that wait for memory, at the traces and at both tables, then follow each
    // other so closely that they wait together.
    let early = if segment.flags.opens() { opening::service(tables, &segment.key) } else { None };
    if ports.has(PortSet::Direct) && early.is_some() {
        trace_places::prefetch(tables, &segment.key, &settings);
    }
    let entry = locate(tables, segment, flow, (early, service))?;
    segment.admit(packet, &settings)?;
    let backend = transmit::backend(tables, segment, flow, longest)?;
    let reason = established::follow(tables, segment, entry, flow)?;
    if flow.forwarding.sees_replies() {
        // Once a tick has to do, where it isn't found afterwards.
        let is_due = flow.last_seen != tick && lasting::may_have_trace(flow, tick);
        if is_due && segment.is_one_of_many() {
            match backend {
                Some(backend) => {
                    nat_traces::leave(tables, segment, &settings, beat, (flow, backend));
                }
                None => reply_traces::leave(tables, segment, &settings, beat, flow),
            }
        }
    } else if traces::may_have_trace(flow) && segment.is_one_of_many() {
        *trace = Trace::new(segment, &settings, beat);
        trace.leave(tables, segment, flow);
    }
    let edits = Edits::NONE;
    Ok(transmit::send(packet, tables, segment, flow, backend, reason, edits)?)
}

/// Finds the established flow that a segment belongs to, and copies what is known of it to `flow`.
///
/// What may open one is looked for among the handshakes right here: neither look waits for the other one's memory. Of a
/// SYN, `early` is the service.
#[inline(always)]
fn locate<'t, A: Family, T: FamilyTables<A>>(
    tables: &'t T,
    segment: &Segment<A>,
    flow: &mut Flow<A>,
    (early, service): (Option<Service>, &mut Service),
) -> Result<Entry<'t, Flow<A>>, Stop> {
    if let Some(entry) = tables.find(Table::Established, &segment.key) {
        *flow = entry.read();
        if !established::begins_anew(tables, segment, flow) {
            return Ok(entry);
        }
        tables::forget(tables, Table::Established, &segment.key, flow);
        return Err(Stop::Open);
    }
    let found = if segment.flags.opens() { early } else { opening::service(tables, &segment.key) };
    let Some(found) = found else {
        // And the rest of it here, without a look at half-open handshakes.
        let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
        if settings.replies_anywhere == 0 && !nat::is_ours(&settings, segment.key.destination_port)
        {
            return Err(Reason::NoService.into());
        }
        return Err(Stop::Open);
    };
    if segment.opens() && tables.find(Table::Embryonic, &segment.key).is_none() {
        *service = found;
        return Err(Stop::OpenNew);
    }
    Err(Stop::Open)
}
