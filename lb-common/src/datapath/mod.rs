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

mod answer;
mod encapsulate;
mod errors;
mod established;
mod fragments;
mod handshake;
mod hash;
mod nat;
mod network;
mod opening;
mod packet;
mod parse;
mod rewrite;
mod segment_size;
mod stage;
mod tables;
mod tags;
mod transmit;
mod verdict;

pub use errors::ErrorScratch;
pub use nat::NAT_TRIES;
pub use network::{Datagram, Family};
pub use packet::Packet;
pub use stage::{Decision, Note, Stage};
pub use tables::{FamilyTables, InsertError, Table, Tables};
pub use verdict::{Action, Clamp, Kind, Reason, Verdict};

use self::{handshake::Handshake, parse::Segment};
use crate::{
    abi::{Direction, Entry, Flow, FlowKey},
    wire::{EtherType, EthernetHeader, Ipv4Address},
};
use bytemuck::Zeroable;

/// What the packet logic works on while it decides about a frame. What it holds before and
/// afterwards is of no interest. IPv6's is too large for a program's stack.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Scratch<A: Family> {
    segment: Segment<A>,
    flow: Flow<A>,
    reply_key: FlowKey<A>,
    /// How long a datagram may be, in bytes, where it is too long.
    longest: u32,
}

// SAFETY: every part of it may be all zeros.
unsafe impl<A: Family> Zeroable for Scratch<A> {}

/// The first part: decides what becomes of a frame, and rewrites it where it is to be sent on.
///
/// A frame whose reason's action is [`Action::Pass`] is left as it was.
#[inline(always)]
pub fn process<P: Packet, T: FamilyTables<Ipv4Address>>(packet: &mut P, tables: &T) -> Decision {
    let Some(ethernet) = packet.read::<EthernetHeader>(0) else {
        return Decision::refusing(packet, Reason::ShortFrame);
    };
    match ethernet.ether_type {
        EtherType::IPV4 => process_ipv4(packet, tables),
        EtherType::IPV6 => Decision::leaving(packet, Stage::Ipv6),
        EtherType::VLAN | EtherType::SERVICE_VLAN => Decision::leaving(packet, Stage::Tagged),
        _ => Decision::refusing(packet, Reason::NotIp),
    }
}

/// What is done with a frame that has VLAN tags: they are taken off, and the rest is another part's.
#[inline(always)]
pub fn process_tagged<P: Packet>(packet: &mut P) -> Decision {
    tags::take_off(packet).unwrap_or_else(|reason| Decision::refusing(packet, reason))
}

/// What is done with a frame that carries IPv4.
#[inline(always)]
pub fn process_ipv4<P: Packet, T: FamilyTables<Ipv4Address>>(
    packet: &mut P,
    tables: &T,
) -> Decision {
    let mut scratch = Scratch::<Ipv4Address>::zeroed();
    match read(packet, &mut scratch) {
        Ok(()) => decide(packet, tables, &mut scratch),
        Err(decision) => decision,
    }
}

/// The first half of what is done with a frame that carries a datagram of the family: reads its
/// headers.
///
/// # Errors
///
/// They aren't those of a datagram for this part: then what becomes of it.
#[inline(always)]
pub fn read<A: Family, P: Packet>(
    packet: &mut P,
    scratch: &mut Scratch<A>,
) -> Result<(), Decision> {
    match parse::segment(packet) {
        Ok(segment) => {
            scratch.segment = segment;
            Ok(())
        }
        Err(Reason::OtherProtocol) if carries_icmp::<A, P>(packet) => {
            let [icmp, ..] = A::STAGES;
            Err(Decision::leaving(packet, icmp))
        }
        Err(Reason::LaterFragment) => {
            let [_, fragment, _] = A::STAGES;
            Err(Decision::leaving(packet, fragment))
        }
        Err(reason) => Err(Decision::refusing(packet, reason)),
    }
}

#[inline(always)]
fn carries_icmp<A: Family, P: Packet>(packet: &P) -> bool {
    let header = A::quoted(packet, NETWORK_OFFSET);
    header.is_some_and(|(_, protocol, _)| protocol == A::ICMP)
}

/// The second half: decides.
#[inline(always)]
pub fn decide<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<A>,
) -> Decision {
    match forward(packet, tables, scratch) {
        Ok(verdict) => Decision::made(packet, verdict),
        Err(Reason::NeedsFragmentation) => {
            // A frame that was flooded to us has its own router to answer it.
            if let Err(reason) = established::demand_own_station(tables, &scratch.segment) {
                return Decision::refusing(packet, reason);
            }
            let [.., too_big] = A::STAGES;
            Decision::too_long(packet, too_big, scratch.longest)
        }
        Err(reason) => Decision::refusing(packet, reason),
    }
}

/// What is done with a frame that carries ICMP of the family.
#[inline(always)]
pub fn process_icmp<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut ErrorScratch<A>,
) -> Decision {
    let result = errors::forward(packet, tables, scratch);
    without_answer(packet, result)
}

/// What is done with a frame that carries a fragment other than the first, of a datagram of the family.
#[inline(always)]
pub fn process_fragment<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<A>,
) -> Decision {
    let result = fragments::forward(packet, tables, scratch);
    without_answer(packet, result)
}

/// What becomes of a frame that nobody is told about by ICMP (RFC 1122, section 3.2.2).
#[inline(always)]
fn without_answer<P: Packet>(packet: &mut P, result: Result<Verdict, Reason>) -> Decision {
    match result {
        Ok(verdict) => Decision::made(packet, verdict),
        Err(Reason::NeedsFragmentation) => Decision::refusing(packet, Reason::TooBig),
        Err(reason) => Decision::refusing(packet, reason),
    }
}

/// What is done with a frame whose datagram of the family is too long.
#[inline(always)]
pub fn answer_too_big<A: Family, P: Packet>(packet: &mut P, note: &Note) -> Decision {
    match answer::too_big::<A, P>(packet, note.longest) {
        Ok(verdict) => Decision::made(packet, verdict),
        Err(reason) => Decision::refusing(packet, reason),
    }
}

/// What is done with a segment with SYN that is ready to be sent: is there something in it to change?
#[inline(always)]
pub fn look_at_syn<P: Packet>(packet: &mut P, note: &mut Note) -> Decision {
    segment_size::find(packet, &mut note.verdict.clamp);
    let mut verdict = note.verdict;
    if verdict.clamp.place == 0 {
        verdict.clamp = Clamp::NONE;
    }
    Decision::made(packet, verdict)
}

/// The last part, of frames that need more than most: what a SYN says is changed, and tags are put on.
#[inline(always)]
pub fn finish<P: Packet>(packet: &mut P, note: &Note) -> Verdict {
    let Note { verdict, .. } = *note;
    let done = segment_size::lower(packet, verdict.clamp);
    match done.and_then(|()| tags::put_on(packet, &verdict)) {
        Some(()) => verdict,
        None => Verdict::refusing(Reason::NoHeadroom),
    }
}

#[inline(always)]
fn forward<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<A>,
) -> Result<Verdict, Reason> {
    let Scratch { segment, flow, reply_key, longest } = scratch;
    let segment = &*segment;
    let place = locate(tables, segment, flow)?;

    let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
    segment.admit(packet, &settings)?;
    let backend = transmit::backend(tables, segment, flow, longest)?;
    let reason = match place {
        Place::Established(entry) => established::follow(tables, segment, entry, flow)?,
        Place::HalfOpen(handshake) => handshake::follow(tables, segment, handshake, flow)?,
        Place::New => opening::record(tables, &settings, segment, backend, flow, reply_key)?,
    };
    let verdict = transmit::send(packet, tables, segment, flow, backend, reason)?;
    if segment.part.is_fragment {
        fragments::remember(tables, segment);
    }
    Ok(verdict)
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
