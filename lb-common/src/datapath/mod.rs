//! The packet's journey, in its order:
//!
//! Most packets are of flows that were looked up lately, and have nothing unusual about them: those go all of it in one part,
//! [`express`]. The others:
//!
//! 1. [`network`], [`parse`]: is it a TCP segment or a UDP datagram that could be ours?
//! 2. [`look_up`]: does it belong to a flow? If not, perhaps to a half-open handshake, or it opens one:
//!    [`open`], a program of its own.
//! 3. It may be sent on: [`Segment::admit`] and [`transmit::backend`] find nothing against it.
//! 4. The tables follow it: [`established`] or [`handshake`]. What belongs to no flow is [`opening`]'s:
//!    there a backend is picked by [`choice`], and [`nat`] finds a source port. A flow whose backend is
//!    down or refuses is [`trouble`]'s.
//! 5. [`transmit`]: the headers are changed as the flow's forwarding says, by [`rewrite`] or
//!    [`encapsulate`].
//!
//! Whatever happens, it has one [`Reason`]; what becomes of the frame follows from that alone.
//!
//! The code knows no platform: frames come in through [`Packet`], tables and time through
//! [`Tables`].

mod answer;
mod choice;
mod encapsulate;
mod errors;
mod established;
mod express;
mod fragments;
mod handshake;
mod hash;
mod lasting;
mod look_up;
mod nat;
mod nat_traces;
mod network;
mod opening;
mod options;
mod packet;
mod parse;
mod reply_traces;
mod rewrite;
mod source_rate;
mod stage;
mod tables;
mod tags;
mod trace_places;
mod traces;
mod transmit;
mod trouble;
mod verdict;

pub use errors::ErrorScratch;
pub use express::express;
pub use lasting::LEAST_TRACED_AGE;
pub use nat::NAT_TRIES;
pub use nat_traces::NatTraceSet;
pub use network::{Datagram, Family};
pub use packet::Packet;
pub use reply_traces::{REPLY_WAYS, ReplyRest, ReplySet, ReplyTraces, reply_sets};
pub use stage::{Decision, Note, Stage};
pub use tables::{FamilyTables, InsertError, Table, Tables};
pub use trace_places::{TRACE_SETS, TRACE_WAYS, TracePlace, TraceSet, trace_sets};
pub use traces::TRACE_TICKS;
pub use verdict::{Action, Back, Edits, Kind, Reason, Verdict};

use self::{choice::Attempt, handshake::Found, parse::Segment, traces::Trace};
use crate::{
    abi::{Flow, FlowKey, Service},
    wire::{EtherType, EthernetHeader},
};
use bytemuck::Zeroable;

/// What the packet logic works on while it decides about a frame. What it holds before and afterwards is of
/// no interest. It is too large for a program's stack.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Scratch<A: Family> {
    segment: Segment<A>,
    flow: Flow<A>,
    reply_key: FlowKey<A>,
    reply: Flow<A>,
    /// How long a datagram may be, in bytes, where it is too long.
    longest: u32,
    trace: Trace,
    /// The one that a new flow is of.
    service: Service,
    /// For what the verifier isn't to know, and the next part is.
    memory: [u32; 2],
}

// SAFETY: every part of it may be all zeros.
unsafe impl<A: Family> Zeroable for Scratch<A> {}

/// The first part: sorts frames. What carries untagged IPv4 goes on with [`express`] in the same program.
///
/// A frame whose reason's action is [`Action::Pass`] is left as it was.
///
/// # Errors
///
/// It carries something else: then what becomes of it.
#[inline(always)]
pub fn sort<P: Packet>(packet: &mut P) -> Result<(), Decision> {
    let Some(ethernet) = packet.read::<EthernetHeader>(0) else {
        return Err(Decision::refusing(packet, Reason::ShortFrame));
    };
    match ethernet.ether_type {
        EtherType::IPV4 => Ok(()),
        EtherType::IPV6 => Err(Decision::passing_on(packet, Stage::Ipv6)),
        EtherType::VLAN | EtherType::SERVICE_VLAN => {
            Err(Decision::passing_on(packet, Stage::Tagged))
        }
        _ => Err(Decision::refusing(packet, Reason::NotIp)),
    }
}

/// What is done with a frame that has VLAN tags: they are taken off, and the rest is another part's.
#[inline(always)]
pub fn process_tagged<P: Packet>(packet: &mut P) -> Decision {
    tags::take_off(packet).unwrap_or_else(|reason| Decision::refusing(packet, reason))
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
    match parse::segment(packet, &mut scratch.segment) {
        Ok(()) => Ok(()),
        Err(Reason::OtherProtocol) if carries_icmp::<A, P>(packet) => {
            let [icmp, ..] = A::STAGES;
            Err(Decision::leaving(packet, icmp))
        }
        Err(Reason::LaterFragment) => {
            let [_, fragment, ..] = A::STAGES;
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
    let result = look_up::forward(packet, tables, scratch);
    conclude(packet, tables, scratch, result)
}

/// What is done with what belongs to no established flow, after [`read`].
#[inline(always)]
pub fn open<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<A>,
    note: &Note,
) -> Decision {
    let mut attempt = Attempt::FIRST;
    if !note.is_new() {
        match handshake::find(tables, &scratch.segment, &mut scratch.flow) {
            Found::HalfOpen(handshake) => {
                let result = handshake::forward(packet, tables, scratch, handshake);
                return conclude(packet, tables, scratch, result);
            }
            Found::Failed(failed) => attempt = failed,
            Found::Nothing => {}
        }
        let Some(service) = opening::service(tables, &scratch.segment.key) else {
            return Decision::refusing(packet, Reason::NoService);
        };
        scratch.service = service;
    }
    match opening::prepare(tables, scratch, attempt) {
        Ok(()) => {
            let [.., record, _] = A::STAGES;
            Decision::Left(record)
        }
        Err(reason) => Decision::refusing(packet, reason),
    }
}

/// What is done with what opens a flow, after [`open`], which left it in `scratch`.
#[inline(always)]
pub fn record<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<A>,
    note: &Note,
) -> Decision {
    let surveyed = note.verdict.edits;
    let result = opening::forward(packet, tables, scratch, surveyed);
    conclude(packet, tables, scratch, result)
}

/// What becomes of a frame that was forwarded, or not.
#[inline(always)]
fn conclude<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &Scratch<A>,
    result: Result<Verdict, Stop>,
) -> Decision {
    let [_, _, too_big, _, trouble, record, _] = A::STAGES;
    match result {
        Ok(verdict) => Decision::made(packet, verdict),
        Err(Stop::Open) => opening::leave(packet, &scratch.segment, false),
        Err(Stop::OpenNew) => opening::leave(packet, &scratch.segment, true),
        Err(Stop::Again) => Decision::Left(record),
        Err(Stop::Trouble | Stop::Refused(Reason::BackendDown)) => {
            Decision::leaving(packet, trouble)
        }
        Err(Stop::Refused(Reason::NeedsFragmentation)) => {
            // A frame that was flooded to us has its own router to answer it.
            if let Err(reason) = established::demand_own_station(tables, &scratch.segment) {
                return Decision::refusing(packet, reason);
            }
            Decision::too_long(packet, too_big, scratch.longest)
        }
        Err(Stop::Refused(reason)) => Decision::refusing(packet, reason),
    }
}

/// What is done with what belongs to a flow in trouble, after [`read`].
#[inline(always)]
pub fn handle_trouble<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<A>,
) -> Decision {
    trouble::decide(packet, tables, scratch)
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
        Err(Reason::BackendDown) => Decision::refusing(packet, Reason::NoBackend),
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

/// What is done with a segment that may have options to change, before it is known where it goes, or when it
/// is ready to be sent.
#[inline(always)]
pub fn look_at_options<P: Packet>(packet: &mut P, note: &mut Note) -> Decision {
    options::find(packet, &mut note.verdict.edits);
    match note.next {
        0 => Decision::made(packet, note.verdict),
        next if next == Stage::Open as u16 => {
            packet.leave(*note);
            Decision::Left(Stage::Open)
        }
        _ => {
            packet.leave(*note);
            Decision::Left(Stage::OpenIpv6)
        }
    }
}

/// The last part, of frames that need more than most: options are changed, and tags are put on.
#[inline(always)]
pub fn finish<P: Packet>(packet: &mut P, note: &Note) -> Verdict {
    let verdict = &note.verdict;
    let done = if verdict.edits.have_places() {
        options::change(packet, &verdict.edits)
    } else {
        Some(())
    };
    match done.and_then(|()| tags::put_on(packet, verdict)) {
        Some(()) => *verdict,
        None => Verdict::refusing(Reason::NoHeadroom),
    }
}

/// Why a part doesn't send a frame on itself.
#[derive(Clone, Copy)]
enum Stop {
    /// It isn't forwarded.
    Refused(Reason),
    /// It belongs to no established flow, but perhaps to a handshake, or opens one.
    Open,
    /// The same where there is no handshake. Its service is known.
    OpenNew,
    /// It belongs to a flow in trouble.
    Trouble,
    /// It opens a flow, and what was found for that is in use: it has to be looked once more.
    Again,
}

impl From<Reason> for Stop {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self::Refused(reason)
    }
}

/// Offset of the network header in a frame without VLAN tags, in bytes.
const NETWORK_OFFSET: usize = EthernetHeader::LENGTH;
