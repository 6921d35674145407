//! The packet's journey, in its order:
//!
//! 1. [`parse`]: is it a TCP segment that could be ours?
//! 2. [`locate`]: does it belong to a flow, or to a half-open handshake, or does it open a
//!    connection to a service? Then a backend is picked from the ring.
//! 3. It may be sent on: [`Segment::admit`] and [`transmit::backend`] find nothing against it.
//! 4. The tables follow it: [`established`], [`handshake`] or [`opening`], where [`nat`] finds a
//!    source port for a new flow.
//! 5. [`transmit`]: the headers are changed as the flow's forwarding says, by [`rewrite`] or
//!    [`encapsulate`].
//!
//! Whatever happens, it has one [`Reason`]; what becomes of the frame follows from that alone.
//!
//! The code knows no platform: frames come in through [`Packet`], tables and time through
//! [`Tables`].

mod encapsulate;
mod established;
mod handshake;
mod hash;
mod nat;
mod opening;
mod packet;
mod parse;
mod rewrite;
mod tables;
mod transmit;
mod verdict;

pub use nat::NAT_TRIES;
pub use packet::Packet;
pub use tables::{InsertError, Table, Tables};
pub use verdict::{Action, Kind, Reason, Verdict};

use self::{handshake::Handshake, parse::Segment};
use crate::{
    abi::{Direction, Entry, Flow},
    wire::{Address, EthernetHeader, Ipv4Address},
};
use bytemuck::Zeroable;

/// Decides what becomes of a frame, and rewrites it where it is to be sent on.
///
/// A frame whose reason's action isn't [`Action::Transmit`] is left as it was.
#[inline(always)]
pub fn process<P: Packet, T: Tables<Ipv4Address>>(packet: &mut P, tables: &T) -> Verdict {
    match forward(packet, tables) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict { reason, egress: 0 },
    }
}

#[inline(always)]
fn forward<P: Packet, T: Tables<Ipv4Address>>(
    packet: &mut P,
    tables: &T,
) -> Result<Verdict, Reason> {
    let segment = parse::segment(packet)?;
    let mut flow = Flow::zeroed();
    let place = locate(tables, &segment, &mut flow)?;

    let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
    segment.admit(packet, &settings)?;
    let backend = transmit::backend(tables, &segment, &flow)?;
    let reason = match place {
        Place::Established(entry) => established::follow(tables, &segment, entry, &flow)?,
        Place::HalfOpen(handshake) => handshake::follow(tables, &segment, handshake, &mut flow)?,
        Place::New => opening::record(tables, &settings, &segment, &backend, &mut flow)?,
    };
    let egress = transmit::send(packet, tables, &segment, &flow, &backend)?;
    Ok(Verdict { reason, egress })
}

/// Where a segment's flow is recorded.
enum Place<'t, A: Address> {
    /// In the table of established flows.
    Established(Entry<'t, Flow<A>>),
    /// In that of half-open handshakes.
    HalfOpen(Handshake<'t, A>),
    /// Nowhere yet: the segment opens it.
    New,
}

/// Finds the flow that a segment belongs to, or the backend of the one that it opens, and copies
/// what is known of it to `flow`.
#[inline(always)]
fn locate<'t, A: Address, T: Tables<A>>(
    tables: &'t T,
    segment: &Segment<A>,
    flow: &mut Flow<A>,
) -> Result<Place<'t, A>, Reason> {
    if let Some(entry) = tables.find(Table::Established, &segment.key) {
        *flow = entry.read();
        // A client uses its port again. The backend judges whether the old connection is over, but
        // one that takes no new connections gets none in this way either.
        let moves = segment.flags.opens()
            && flow.direction == Direction::ToBackend as u8
            && established::is_over(flow)
            && !opening::would_pick(tables, segment, flow.backend);
        if !moves {
            return Ok(Place::Established(entry));
        }
        tables::forget(tables, Table::Established, &segment.key, flow);
    }

    let service = opening::service(tables, segment);
    if service.is_none() {
        // Most of what isn't ours ends here, without a look at half-open handshakes.
        let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
        if settings.replies_anywhere == 0 && !nat::is_ours(&settings, segment.key.destination_port)
        {
            return Err(Reason::NoService);
        }
    }
    if let Some(handshake) = handshake::find(tables, segment, flow) {
        return Ok(Place::HalfOpen(handshake));
    }
    let service = service.ok_or(Reason::NoService)?;
    opening::choose(tables, segment, &service, flow)?;
    Ok(Place::New)
}

/// Offset of the network header in a frame without VLAN tags, in bytes.
const NETWORK_OFFSET: usize = EthernetHeader::LENGTH;
