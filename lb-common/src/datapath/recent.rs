//! By direct return: flows that were looked up lately, and that the ring leads where they go.
//!
//! Most packets of a flow go where its ring's slot leads, which is the same for each of them; the flow's entry only matters
//! once that changes. So what was found in the table is noted in a small cache for some seconds: a packet whose flow and whose
//! slot's backend are noted there together needs no look at the table. When the slot leads elsewhere, nothing is noted of
//! the flow and that backend, and the table says where it goes.
//!
//! A note is half of a hash of 64 bits, of which the other half says where it stands: that a flow is taken for one that
//! is noted has a chance of one in 10^9, and does no harm unless the slot that it is in has changed since it was opened.

use bytemuck::Zeroable;

use super::{Family, FamilyTables, choice, opening, parse::Segment};
use crate::{
    abi::{
        CHECK_SERVICE, Direction, Flow, FlowKey, FlowState, Forwarding, Moment, NO_BACKEND,
        Settings,
    },
    wire::{Ipv4Header, TcpFlags},
};

/// Notes that stand together.
pub const RECENT_WAYS: usize = 4;
/// How many such sets there are: room for a million flows.
pub const RECENT_SETS: u32 = 1 << 18;
/// How long a note holds at most, in ticks. For so long, a flow's entry may not know of its newest packet.
pub const RECENT_TICKS: u32 = 4;

/// Where a packet goes if its flow, should there be one, is at the backend that its slot leads to.
#[derive(Clone, Copy, Zeroable)]
#[repr(C)]
pub(super) struct Candidate {
    /// [`NO_BACKEND`]: there is none, or its replies don't return directly.
    backend: u32,
    service: u32,
    set: u32,
    note: u32,
    forwarding: Forwarding,
}

impl Candidate {
    /// Becomes what there is to note of a segment, which may be for a service by direct return.
    #[inline(always)]
    pub(super) fn prepare<A: Family, T: FamilyTables<A>>(
        &mut self,
        tables: &T,
        segment: &Segment<A>,
        settings: &Settings,
    ) {
        self.backend = NO_BACKEND;
        let key = &segment.key;
        let Some(service) = opening::service(tables, key) else { return };
        let index = choice::led_to(tables, key, &service, settings);
        if index == NO_BACKEND {
            return;
        }
        let Some(backend) = tables.backend(index) else { return };
        if backend.forwarding.sees_replies() {
            return;
        }
        let hash = hash(key, settings.hash_seed);
        let place = index.wrapping_mul(0x9e37_79b1) ^ u32::from(backend.forwarding.number());
        let note = (hash >> 32) as u32 ^ place ^ epoch(tables.now()).wrapping_mul(0x85eb_ca77);
        self.service = service.index;
        self.set = hash as u32 % RECENT_SETS;
        // Zero stands where nothing was noted yet.
        self.note = if note == 0 { 1 } else { note };
        self.forwarding = backend.forwarding;
        self.backend = index;
    }
}

/// A number that changes when notes are to be forgotten.
#[inline(always)]
const fn epoch(now: Moment) -> u32 {
    now.tick().number() / RECENT_TICKS
}

/// Whether a segment that opens nothing is one of many: none that a flow ends with.
#[inline(always)]
const fn is_usual<A: Family>(segment: &Segment<A>) -> bool {
    let ends = TcpFlags::FIN.union(TcpFlags::RST);
    segment.is_udp() || (segment.flags.has(TcpFlags::ACK) && !segment.flags.has(ends))
}

impl Candidate {
    /// Whether a segment's flow was noted at this backend. Then `flow` becomes what is needed to forward it.
    #[inline(always)]
    pub(super) fn is_noted<A: Family, T: FamilyTables<A>>(
        &self,
        tables: &T,
        segment: &Segment<A>,
        flow: &mut Flow<A>,
    ) -> bool {
        let [first, second, third, fourth] = tables.recent(self.set);
        let note = self.note;
        if self.backend == NO_BACKEND
            || !is_usual(segment)
            || (first != note && second != note && third != note && fourth != note)
        {
            return false;
        }
        flow.source = segment.key.source;
        flow.destination = segment.key.destination;
        flow.network_delta = Ipv4Header::TIME_TO_LIVE_DELTA;
        flow.backend = self.backend;
        flow.service = self.service;
        flow.direction = Direction::ToBackend as u8;
        flow.forwarding = self.forwarding;
        true
    }

    /// Notes a segment's flow, as it was found in the table, if it goes where the ring leads; or forgets it, if it ends.
    #[inline(always)]
    pub(super) fn follow<A: Family, T: FamilyTables<A>>(
        &self,
        tables: &T,
        segment: &Segment<A>,
        flow: &Flow<A>,
    ) {
        if self.backend == NO_BACKEND {
            return;
        }
        let ways = tables.recent(self.set);
        if !is_usual(segment) {
            for way in 0..RECENT_WAYS {
                if ways[way & (RECENT_WAYS - 1)] == self.note {
                    tables.note_recent(self.set, way as u32, 0);
                }
            }
        } else if flow.state == FlowState::ESTABLISHED
            && flow.backend == self.backend
            && flow.service == self.service
            && flow.service != CHECK_SERVICE
            && flow.forwarding == self.forwarding
            && flow.direction == Direction::ToBackend as u8
        {
            tables.note_recent(self.set, tables.random() % RECENT_WAYS as u32, self.note);
        }
    }
}

/// A hash of 64 bits of what identifies a flow: no two flows over IPv4 have the same.
#[inline(always)]
fn hash<A: Family>(key: &FlowKey<A>, seed: u32) -> u64 {
    let ports = (u64::from(key.source_port.raw()) << 16) | u64::from(key.destination_port.raw());
    let mut hash = mix(u64::from(seed) ^ (ports | (u64::from(key.protocol) << 32)));
    let (source, destination) = (key.source.words(), key.destination.words());
    for (source, destination) in source.iter().zip(&destination).take(A::WORDS) {
        hash = mix(hash ^ (u64::from(source.raw()) | (u64::from(destination.raw()) << 32)));
    }
    hash
}

/// Spreads each bit over all of them, one to one (as the finalisers of `MurmurHash3` do).
#[inline(always)]
const fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}
