//! Where a segment goes, and the last step: it is sent there, and counted.

use core::hint;

use super::{
    Edits, Family, FamilyTables, Packet, Reason, Verdict, encapsulate, fragments, options,
    parse::Segment, rewrite,
};
use crate::{
    abi::{Backend, CHECK_SERVICE, Direction, Fate, Flow, Hop},
    wire::TcpFlags,
};

/// The flow's backend, where a segment goes there, if it is known how to reach it. `None`: it goes to the
/// client, and the datagram has to be short enough for the way; where it is too long, `longest` becomes what would do, in bytes.
/// For what else is demanded, see [`demand`].
#[inline(always)]
pub(super) fn backend<'t, A: Family, T: FamilyTables<A>>(
    tables: &'t T,
    segment: &Segment<A>,
    flow: &Flow<A>,
    longest: &mut u32,
) -> Result<Option<&'t Backend>, Reason> {
    if flow.direction == Direction::ToClient as u8 {
        demand_short(segment, flow, longest)?;
        return Ok(None);
    }
    let backend = tables.backend(flow.backend).ok_or(Reason::TablesIncomplete)?;
    demand(segment, flow, backend, longest)?;
    Ok(Some(backend))
}

/// Demands that a datagram is short enough for the way to the client; where it isn't, `longest` becomes what would do, in bytes.
#[inline(always)]
pub(super) fn demand_short<A: Family>(
    segment: &Segment<A>,
    flow: &Flow<A>,
    longest: &mut u32,
) -> Result<(), Reason> {
    let most = flow.maximum_datagram;
    if most != 0 && segment.datagram_length > most as usize {
        *longest = most.into();
        return Err(Reason::NeedsFragmentation);
    }
    Ok(())
}

/// Demands that the flow's backend isn't down, or its flows go on nevertheless, that it is known how to reach it, and that the
/// datagram is short enough for the way; where it is too long, `longest` becomes what would do, in bytes.
#[inline(always)]
pub(super) fn demand<A: Family>(
    segment: &Segment<A>,
    flow: &Flow<A>,
    backend: &Backend,
    longest: &mut u32,
) -> Result<(), Reason> {
    if backend.fate != Fate::Keep && flow.service != CHECK_SERVICE {
        return Err(Reason::BackendDown);
    }
    if backend.next_hop.interface == 0 {
        return Err(Reason::NextHopUnknown);
    }
    let most = backend.longest(flow.forwarding);
    if segment.datagram_length > most as usize {
        *longest = most.into();
        return Err(Reason::NeedsFragmentation);
    }
    Ok(())
}

/// Sends a datagram in whose transport header there is nothing to change to the backend or to the
/// client, as its flow says, for that reason.
#[inline(always)]
pub(super) fn send_headless<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    segment: &Segment<A>,
    flow: &Flow<A>,
    backend: Option<&Backend>,
    reason: Reason,
) -> Result<Verdict, Reason> {
    let (hop, _) = redirect(packet, tables, segment, flow, backend)?;
    Ok(Verdict::sending(reason, hop))
}

/// Sends a segment to the backend or to the client, as its flow says, for that reason. What `edits` says of
/// its options may have been looked for before.
#[inline(always)]
pub(super) fn send<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    segment: &Segment<A>,
    flow: &Flow<A>,
    backend: Option<&Backend>,
    reason: Reason,
    mut edits: Edits,
) -> Result<Verdict, Reason> {
    if flow.forwarding.sees_replies() {
        let mut delta = flow.transport_delta;
        if edits.looked == 0
            && let Some(shifted) = options::shift_usual(packet, segment, flow, &mut edits)
        {
            delta = delta.and(shifted);
        }
        rewrite::transport(packet, segment, flow, delta).ok_or(Reason::ShortFrame)?;
    }
    let (hop, added) = redirect(packet, tables, segment, flow, backend)?;
    let direction = Direction::from_u8(flow.direction);
    tables.count_packet(flow.service, flow.backend, direction, segment.datagram_length as u64);
    // The places count from where the frame begins now.
    edits.transport_offset = (added + segment.transport_offset()) as u16;
    if edits.segment_place != 0 {
        edits.segment_place += added as u16;
    }
    if edits.looked == 0 && segment.flags.has(TcpFlags::SYN) {
        let backend = tables.backend(flow.backend).ok_or(Reason::TablesIncomplete)?;
        edits.maximum_segment = backend.maximum_segment;
    }
    if segment.part.is_fragment {
        fragments::remember(tables, segment);
    }
    let mut verdict = Verdict::sending(reason, hop);
    verdict.edits = edits;
    Ok(verdict)
}

/// Sends a segment that is one of many to its backend by direct return: there is nothing to change in it but how many hops are
/// left.
#[inline(always)]
pub(super) fn send_directly<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    segment: &Segment<A>,
    flow: &Flow<A>,
    backend: &Backend,
) -> Result<Verdict, Reason> {
    if flow.forwarding.encapsulates() {
        encapsulate::forward(packet, tables, segment, flow, backend)?;
    } else {
        rewrite::one_hop(packet, segment, &backend.next_hop).ok_or(Reason::ShortFrame)?;
    }
    let bytes = segment.datagram_length as u64;
    tables.count_packet(flow.service, flow.backend, Direction::ToBackend, bytes);
    Ok(Verdict::sending(Reason::ToBackend, backend.next_hop))
}

/// Changes the headers before the transport header, or puts outer ones before them. Returns where the
/// frame is to go, and how many bytes were put before it.
#[inline(always)]
fn redirect<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    segment: &Segment<A>,
    flow: &Flow<A>,
    backend: Option<&Backend>,
) -> Result<(Hop, usize), Reason> {
    // One place, whichever it is: else the compiler carries one for each part of it.
    let back = flow.link.back();
    let hop = hint::black_box(backend.map_or(&back, |backend| &backend.next_hop));
    let added = match backend {
        Some(backend) if flow.forwarding.encapsulates() => {
            encapsulate::forward(packet, tables, segment, flow, backend)?
        }
        _ => {
            rewrite::network(packet, segment, flow, hop).ok_or(Reason::ShortFrame)?;
            0
        }
    };
    Ok((*hop, added))
}
