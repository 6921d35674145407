//! Where a segment goes, and the last step: it is sent there, and counted.

use bytemuck::Zeroable;

use super::{Packet, Reason, Tables, encapsulate, parse::Segment, rewrite};
use crate::{
    abi::{Backend, Direction, Flow},
    wire::Address,
};

/// The flow's backend, where a segment goes there. Demands that it is known how to reach it, and
/// that the datagram is short enough. Of a reply's, nothing needs to be known.
#[inline(always)]
pub(super) fn backend<A: Address, T: Tables<A>>(
    tables: &T,
    segment: &Segment<A>,
    flow: &Flow<A>,
) -> Result<Backend, Reason> {
    if flow.direction == Direction::ToClient as u8 {
        return Ok(Backend::zeroed());
    }
    let backend = tables.backend(flow.backend).ok_or(Reason::TablesIncomplete)?;
    if backend.link.interface == 0 {
        return Err(Reason::NextHopUnknown);
    }
    let length = segment.datagram_length + encapsulate::overhead(flow.forwarding);
    if length > backend.maximum_datagram as usize {
        return Err(Reason::NeedsFragmentation);
    }
    Ok(backend)
}

/// Sends a segment to the backend or to the client, as its flow says. Returns the index of the
/// interface that it leaves by.
#[inline(always)]
pub(super) fn send<A: Address, P: Packet, T: Tables<A>>(
    packet: &mut P,
    tables: &T,
    segment: &Segment<A>,
    flow: &Flow<A>,
    backend: &Backend,
) -> Result<u32, Reason> {
    let direction = Direction::from_u8(flow.direction);
    let link = match direction {
        Direction::ToBackend => backend.link,
        Direction::ToClient => flow.link,
    };
    if flow.forwarding.encapsulates() {
        encapsulate::forward(packet, tables, segment, flow, backend)?;
    } else {
        rewrite::headers(packet, segment, flow, link).ok_or(Reason::ShortFrame)?;
    }
    tables.count_packet(flow.service, flow.backend, direction, segment.datagram_length as u64);
    Ok(link.interface)
}
