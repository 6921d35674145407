//! The packet's journey, in its order:
//!
//! 1. [`network`], [`parse`]: is it a TCP segment or a UDP datagram that could be ours?
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
mod network;
mod opening;
mod packet;
mod parse;
mod rewrite;
mod tables;
mod transmit;
mod verdict;

pub use nat::NAT_TRIES;
pub use network::{Datagram, Family};
pub use packet::Packet;
pub use tables::{FamilyTables, InsertError, Table, Tables};
pub use verdict::{Action, Kind, Reason, Verdict};

use self::{handshake::Handshake, parse::Segment};
use crate::{
    abi::{Direction, Entry, Flow, FlowKey},
    wire::{EtherType, EthernetHeader, Ipv4Address},
};
use bytemuck::Zeroable;

/// A part of the packet logic that is a program of its own in the kernel, so that what it takes, in
/// instructions and in stack, is no other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stage {
    /// IPv6.
    Ipv6 = 0,
}

impl Stage {
    /// Every one, in the order of its numbers.
    pub const ALL: [Self; 1] = [Self::Ipv6];
}

/// What the first part says of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// What became of it.
    Made(Verdict),
    /// It is left to another part, as it was.
    Left(Stage),
}

/// What the packet logic works on while it decides about a frame. What it holds before and
/// afterwards is of no interest. IPv6's is too large for a program's stack.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Scratch<A: Family> {
    segment: Segment<A>,
    flow: Flow<A>,
    reply_key: FlowKey<A>,
}

// SAFETY: every part of it may be all zeros.
unsafe impl<A: Family> Zeroable for Scratch<A> {}

/// The first part: decides what becomes of a frame, and rewrites it where it is to be sent on.
///
/// A frame whose reason's action isn't [`Action::Transmit`] is left as it was.
#[inline(always)]
pub fn process<P: Packet, T: FamilyTables<Ipv4Address>>(packet: &mut P, tables: &T) -> Decision {
    let Some(ethernet) = packet.read::<EthernetHeader>(0) else {
        return Decision::Made(Verdict::refusing(Reason::ShortFrame));
    };
    let reason = match ethernet.ether_type {
        EtherType::IPV4 => {
            let verdict = process_family(packet, tables, &mut Scratch::<Ipv4Address>::zeroed());
            return Decision::Made(verdict);
        }
        EtherType::IPV6 => return Decision::Left(Stage::Ipv6),
        EtherType::VLAN | EtherType::SERVICE_VLAN => Reason::VlanTagged,
        _ => Reason::NotIp,
    };
    Decision::Made(Verdict::refusing(reason))
}

/// The same for a frame that carries a datagram of the family.
#[inline(always)]
pub fn process_family<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<A>,
) -> Verdict {
    match read(packet, scratch) {
        Ok(()) => decide(packet, tables, scratch),
        Err(reason) => Verdict::refusing(reason),
    }
}

/// The first half of [`process_family`]: reads the frame's headers.
///
/// # Errors
///
/// They aren't those of a datagram for us.
#[inline(always)]
pub fn read<A: Family, P: Packet>(packet: &P, scratch: &mut Scratch<A>) -> Result<(), Reason> {
    scratch.segment = parse::segment(packet)?;
    Ok(())
}

/// The second half of [`process_family`].
#[inline(always)]
pub fn decide<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<A>,
) -> Verdict {
    forward(packet, tables, scratch).unwrap_or_else(Verdict::refusing)
}

#[inline(always)]
fn forward<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<A>,
) -> Result<Verdict, Reason> {
    let Scratch { segment, flow, reply_key } = scratch;
    let segment = &*segment;
    let place = locate(tables, segment, flow)?;

    let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
    segment.admit(packet, &settings)?;
    let backend = transmit::backend(tables, segment, flow)?;
    let reason = match place {
        Place::Established(entry) => established::follow(tables, segment, entry, flow)?,
        Place::HalfOpen(handshake) => handshake::follow(tables, segment, handshake, flow)?,
        Place::New => opening::record(tables, &settings, segment, backend, flow, reply_key)?,
    };
    let egress = transmit::send(packet, tables, segment, flow, backend)?;
    Ok(Verdict { reason, egress })
}

/// Where a segment's flow is recorded.
enum Place<'t, A: Family> {
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
fn locate<'t, A: Family, T: FamilyTables<A>>(
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
