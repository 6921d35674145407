//! Copies of established flows: where a reply finds one, it needs one line of memory instead of three or more.
//!
//! A flow's entry lies behind a bucket and a key, somewhere in a table that may be much larger than a processor's caches. So a
//! flow whose replies pass through us leaves a copy of their entry where a hash of its key says. (The other direction leaves
//! [`super::nat_traces`], since less has to be known there.) In the copy, a seal stands in the
//! place of the entry's times: a number that depends on a secret, on the key, on the time and on all that the copy says. Who
//! finds the seal that belongs to its own key has found its own flow, whole, however many others write to the same place.
//!
//! A copy holds for some seconds, as a trace does ([`TRACE_TICKS`]), so the entry itself knows by and by that the flow lives.
//! Hardly anybody else's takes its place meanwhile: where there are more flows than places, some leave no copy, rather than that all of
//! them leave one in vain. What changes an entry, or removes it, erases its copies afterwards; and who leaves a copy looks at
//! the entry once more, and erases it if that isn't the same any longer. So one of the two sees what the other has done.

use bytemuck::Zeroable;

use super::{
    Family, FamilyTables, TRACE_TICKS, Table, hash, nat_traces, parse::Segment, trace_places,
};
use crate::{
    abi::{Beat, CHECK_SERVICE, Direction, Flow, FlowKey, FlowState, Tick, finished},
    wire::Address,
};

/// Number of [`crate::abi::CachePair`]s that there are. In each there is room for copies of two flows over IPv4, or of one over
/// IPv6.
pub const CACHE_PAIRS: u32 = 1 << 17;

/// Least age of a flow that leaves a copy, in ticks: many are over before it would be of use.
pub const LEAST_COPIED_AGE: u32 = 2;

/// Words of 64 bits in a line of a processor's cache.
const LINE_WORDS: u32 = 8;

/// Bits of a seal that are of the time; above them are some of the key's, and below them the digest.
const TIME_SHIFT: u32 = 48;
/// Bits of a seal that are of the key.
const TAG_SHIFT: u32 = 56;

/// Stands for no way.
const NOWHERE: u32 = u32::MAX;

/// How many copies of flows of the family there is room for in a pair: its ways.
#[inline(always)]
pub const fn copy_ways<A: Address>() -> u32 {
    LINE_WORDS * 2 * 8 / (size_of::<Flow<A>>() as u32).next_multiple_of(LINE_WORDS * 8)
}

/// Which word of a pair a way begins with.
#[inline(always)]
pub const fn copy_word(way: u32) -> usize {
    ((way % 2) * LINE_WORDS) as usize
}

/// Where the copy of a flow may be that has a certain key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyPlace {
    /// The pair's index.
    pub pair: u32,
    tag: u64,
}

impl CopyPlace {
    /// That of a key, where the data path has that secret.
    #[inline(always)]
    pub fn of<A: Address>(key: &FlowKey<A>, secret: u64) -> Self {
        Self::of_hash(hash::keyed(key, secret))
    }

    #[inline(always)]
    const fn of_hash(hash: u64) -> Self {
        Self { pair: (hash >> 32) as u32 % CACHE_PAIRS, tag: hash << TAG_SHIFT }
    }

    /// Whether a seal is one of such a copy, as far as can be told without the copy.
    #[inline(always)]
    pub const fn may_be_at(self, seal: u64) -> bool {
        (seal ^ self.tag) >> TAG_SHIFT == 0
    }
}

/// Where a flow's copy lies, and what its seal begins with.
#[derive(Clone, Copy, Zeroable)]
#[repr(C)]
pub(super) struct Mark {
    /// What the digest begins with.
    start: u64,
    /// The seal, but for the digest.
    upper: u64,
    pair: u32,
    reserved: u32,
}

impl Mark {
    /// Becomes that of the flow of a key.
    #[inline(always)]
    pub(super) fn set<A: Address>(&mut self, key: &FlowKey<A>, secret: u64, now: Beat) {
        let hash = hash::keyed(key, secret);
        let CopyPlace { pair, tag } = CopyPlace::of_hash(hash);
        // Not all at the same moment.
        let time = u64::from(now.number().wrapping_add(pair) / TRACE_TICKS);
        self.start = hash::mix_long(hash ^ (time << 32));
        self.upper = tag | (time << TIME_SHIFT) & !(u64::MAX << TAG_SHIFT);
        self.pair = pair;
    }

    /// The seal of a copy.
    #[inline(always)]
    fn seal<A: Family>(&self, key: &FlowKey<A>, flow: &Flow<A>) -> u64 {
        let digest = hash::mix_half(A::digest(key, flow, self.start));
        self.upper | digest & !(u64::MAX << TIME_SHIFT)
    }

    /// As [`CopyPlace::may_be_at`].
    #[inline(always)]
    const fn may_be_at(&self, seal: u64) -> bool {
        CopyPlace { pair: self.pair, tag: self.upper }.may_be_at(seal)
    }

    /// Whether the copy of a seal doesn't hold any longer.
    #[inline(always)]
    const fn is_free(&self, seal: u64) -> bool {
        seal == 0 || ((seal ^ self.upper) >> TIME_SHIFT) & 0xff != 0
    }

    /// Whether the copy of a reply's entry is there, and says all that has to be known of it. Then `flow` becomes what it says,
    /// without its times.
    #[inline(always)]
    pub(super) fn take<A: Family, T: FamilyTables<A>>(
        &self,
        tables: &T,
        segment: &Segment<A>,
        flow: &mut Flow<A>,
    ) -> bool {
        let way = if self.may_be_at(tables.seal(self.pair, 0)) {
            0
        } else if copy_ways::<A>() == 2 && self.may_be_at(tables.seal(self.pair, 1)) {
            1
        } else {
            return false;
        };
        if !tables.read_copy(self.pair, way, flow) || flow.seal() != self.seal(&segment.key, flow) {
            return false;
        }
        // To the client's own address: it may also have been flooded to us.
        flow.forwarding.hides_client() || tables.is_station(&segment.station())
    }

    /// Leaves a copy of the entry of a reply that was looked up, if there is room. Becomes the flow's.
    #[inline(always)]
    pub(super) fn leave<A: Family, T: FamilyTables<A>>(
        &mut self,
        tables: &T,
        segment: &Segment<A>,
        flow: &Flow<A>,
        secret: u64,
        now: Beat,
    ) {
        self.set(&segment.key, secret, now);
        let way = self.way(tables);
        if way == NOWHERE {
            return;
        }
        let seal = self.seal(&segment.key, flow);
        tables.write_copy(self.pair, way, flow, seal);
        let is_same = match tables.find(Table::Established, &segment.key) {
            Some(entry) => self.seal(&segment.key, &entry.read()) == seal,
            None => false,
        };
        if !is_same {
            tables.erase_copy(self.pair, way);
        }
    }

    /// The way that the flow's copy goes to.
    #[inline(always)]
    fn way<A: Family, T: FamilyTables<A>>(&self, tables: &T) -> u32 {
        let first = tables.seal(self.pair, 0);
        if self.may_be_at(first) {
            return 0;
        }
        if copy_ways::<A>() == 2 {
            let second = tables.seal(self.pair, 1);
            if self.may_be_at(second) || (self.is_free(second) && !self.is_free(first)) {
                return 1;
            }
        }
        if self.is_free(first) { 0 } else { NOWHERE }
    }
}

/// Whether a flow's entry may have a copy, or a trace where its replies pass through us.
#[inline(always)]
pub(super) fn may_have_copy<A: Family>(flow: &Flow<A>, now: Tick) -> bool {
    flow.finished == 0
        && flow.state == FlowState::ESTABLISHED
        && flow.forwarding.sees_replies()
        && flow.service != CHECK_SERVICE
        && now.since(flow.opened) >= LEAST_COPIED_AGE
}

/// Erases the traces and the copies of both directions' entries, whose values have changed or which have been removed: `flow` is what the
/// one of `key` was before. When it was `opened`, the direction to the client may no longer know.
#[inline(always)]
pub(super) fn erase<A: Family, T: FamilyTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    flow: &Flow<A>,
    opened: Option<Tick>,
) {
    if flow.service == CHECK_SERVICE {
        return;
    }
    if !flow.forwarding.sees_replies() {
        if let Some(settings) = tables.settings() {
            trace_places::erase(tables, key, &settings);
        }
        return;
    }
    let is_known = opened.is_some()
        || flow.direction == Direction::ToBackend as u8
        || flow.finished & finished::CLIENT == 0;
    // One that is about to leave its first copy has the clock of another CPU.
    if is_known && tables.now().tick().since(opened.unwrap_or(flow.opened)) < LEAST_COPIED_AGE - 1 {
        return;
    }
    let Some(settings) = tables.settings() else { return };
    let peer = &flow.peer_key(key.protocol);
    let (request, reply) = match Direction::from_u8(flow.direction) {
        Direction::ToBackend => (key, peer),
        Direction::ToClient => (peer, key),
    };
    nat_traces::erase(tables, request, &settings);
    erase_at(tables, CopyPlace::of(reply, settings.secret));
}

#[inline(always)]
fn erase_at<A: Family, T: FamilyTables<A>>(tables: &T, place: CopyPlace) {
    if place.may_be_at(tables.confirmed_seal(place.pair, 0)) {
        tables.erase_copy(place.pair, 0);
    }
    if copy_ways::<A>() == 2 && place.may_be_at(tables.confirmed_seal(place.pair, 1)) {
        tables.erase_copy(place.pair, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Ipv4Address, Ipv6Address};

    /// Demands that a flow's digest depends on every bit of key and entry, and on nothing that isn't said.
    fn demand_all_bits<A: Family>() {
        let key: FlowKey<A> = Zeroable::zeroed();
        let flow: Flow<A> = Zeroable::zeroed();
        let start = 0x0123_4567_89ab_cdef;
        let known = A::digest(&key, &flow, start);
        assert_ne!(known, A::digest(&key, &flow, start ^ 1));
        for bit in 0..size_of::<Flow<A>>() * 8 {
            let mut other = flow;
            bytemuck::bytes_of_mut(&mut other)[bit / 8] ^= 1 << (bit % 8);
            let is_time = bit / 64 == Flow::<A>::SEAL_WORD;
            assert_eq!(A::digest(&key, &other, start) == known, is_time, "bit {bit} of the entry");
        }
        for bit in 0..size_of::<FlowKey<A>>() * 8 {
            let mut other = key;
            bytemuck::bytes_of_mut(&mut other)[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(A::digest(&other, &flow, start), known, "bit {bit} of the key");
            let first = |mark: &Mark| (mark.start, mark.pair);
            let [one, two] = [key, other].map(|key| {
                let mut mark = Mark::zeroed();
                mark.set(&key, 1, Beat::of_jiffies(100, 0));
                first(&mark)
            });
            assert_ne!(one.0, two.0, "bit {bit} of the key");
        }
    }

    #[test]
    fn a_seal_depends_on_every_bit() {
        demand_all_bits::<Ipv4Address>();
        demand_all_bits::<Ipv6Address>();
    }

    #[test]
    fn keys_spread_over_all_pairs() {
        let mut pairs = std::collections::HashSet::new();
        for port in 0..50_000_u16 {
            let mut key: FlowKey<Ipv4Address> = Zeroable::zeroed();
            key.source_port = crate::wire::NetworkU16::new(port);
            pairs.insert(CopyPlace::of(&key, 7).pair);
        }
        // By chance alone, 41,570 of them are different.
        assert!((41_100..42_000).contains(&pairs.len()), "{}", pairs.len());
        assert!(pairs.iter().all(|pair| *pair < CACHE_PAIRS));
    }

    #[test]
    fn a_seal_tells_whose_it_is_and_until_when() {
        let key: FlowKey<Ipv4Address> = Zeroable::zeroed();
        let flow: Flow<Ipv4Address> = Zeroable::zeroed();
        let place = CopyPlace::of(&key, 7);
        let at = |beat: u32| {
            let mut mark = Mark::zeroed();
            mark.set(&key, 7, Beat::of_jiffies(beat.into(), 0));
            (mark, mark.seal(&key, &flow))
        };
        let begin = (0..TRACE_TICKS).find(|tick| (tick + place.pair).is_multiple_of(TRACE_TICKS));
        let begin = begin.unwrap();
        let (first, seal) = at(begin);
        for tick in 0..TRACE_TICKS * 2 {
            let (mark, other) = at(begin + tick);
            assert!(mark.may_be_at(seal) && place.may_be_at(seal));
            assert_eq!(other == seal, tick < TRACE_TICKS, "{tick}");
            assert_eq!(first.is_free(other), tick >= TRACE_TICKS, "{tick}");
        }
        assert!(first.is_free(0) && !first.is_free(seal ^ (1 << TAG_SHIFT)));
        assert!(!first.may_be_at(seal ^ (1 << TAG_SHIFT)));
    }

    #[test]
    fn two_copies_over_ipv4_fill_a_pair_and_one_over_ipv6() {
        assert_eq!((copy_ways::<Ipv4Address>(), copy_ways::<Ipv6Address>()), (2, 1));
        assert_eq!((copy_word(0), copy_word(1)), (0, 8));
    }
}
