//! Where the traces of flows stand.

use super::{Tables, hash};
use crate::{
    abi::{FlowKey, Settings},
    wire::Address,
};

/// Traces that stand together: half a line of a processor's cache.
pub const TRACE_WAYS: usize = 4;

/// The traces of a set, in words; zero is none.
pub type TraceSet = [u64; TRACE_WAYS];

/// Number of sets that there are by direct return, and of requests whose replies pass through us: enough for the traces of half a million flows. One in 27 finds no place, by calculation, where
/// there is none beside, and else one in 120.
pub const TRACE_SETS: u32 = 1 << 18;
/// Least number that is used.
const LEAST_SETS: u32 = 1 << 11;
/// Flows for each set.
pub(super) const FLOWS_A_SET: u32 = TRACE_WAYS as u32 / 2;

/// How many of the sets are best used for so many flows: the fewer there are, the better do they stay in a processor's cache.
/// While the number of flows changes, it stays as it was (`before`; 0: there was none) as long as that does.
#[inline(always)]
pub const fn trace_sets(flows: u32, before: u32) -> u32 {
    let sets = flows.div_ceil(FLOWS_A_SET);
    let most = if sets > TRACE_SETS { TRACE_SETS } else { sets.next_power_of_two() };
    let best = if most < LEAST_SETS { LEAST_SETS } else { most };
    if best > before || best < before / 4 { best } else { before }
}

/// Where the bits of a trace begin that are of its key alone.
pub(super) const KEY_SHIFT: u32 = 48;

/// The set beside another one, where traces stand that have no room there.
#[inline(always)]
pub(super) const fn beside(set: u32) -> u32 {
    set ^ 1
}

/// Has the processor fetch what [`erase`] will look at, while it looks up the flow.
#[inline(always)]
pub(super) fn prefetch<A: Address, T: Tables>(tables: &T, key: &FlowKey<A>, settings: &Settings) {
    let _: TraceSet = tables.traces(TracePlace::of(key, settings).set);
}

/// Erases the traces of a flow whose entry has changed, or was removed, by whatever stations its frames came.
#[inline(always)]
pub(super) fn erase<A: Address, T: Tables>(tables: &T, key: &FlowKey<A>, settings: &Settings) {
    let place = TracePlace::of(key, settings);
    erase_at(tables, place);
    erase_at(tables, place.beside());
}

#[inline(always)]
fn erase_at<T: Tables>(tables: &T, place: TracePlace) {
    // What was left before is seen, and what comes after it finds the entry changed.
    for (way, word) in (0..).zip(tables.confirmed_traces(place.set)) {
        if place.has(word) {
            tables.set_trace(place.set, way, 0);
        }
    }
}

/// Where the traces of a flow are, by whatever stations its frames come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TracePlace {
    /// The set's index.
    pub set: u32,
    /// What its traces have in common, where it stands in them.
    pub(super) key: u64,
}

impl TracePlace {
    /// That of a key, where the data path has those settings.
    #[inline(always)]
    pub fn of<A: Address>(key: &FlowKey<A>, settings: &Settings) -> Self {
        Self::of_hash(hash::keyed(key, settings.secret), settings.trace_mask)
    }

    /// The same of a flow whose replies pass through us: see [`super::NatTraceSet`].
    #[inline(always)]
    pub fn of_nat<A: Address>(key: &FlowKey<A>, settings: &Settings) -> Self {
        Self::of_hash(hash::keyed(key, settings.secret), settings.nat_trace_mask)
    }

    #[inline(always)]
    pub(super) const fn of_hash(hash: u64, mask: u32) -> Self {
        Self { set: (hash >> 32) as u32 & mask, key: hash << KEY_SHIFT }
    }

    /// The other one, where a flow's trace stands that found no room, if it is one by direct return or of replies.
    #[inline(always)]
    #[must_use]
    pub const fn beside(self) -> Self {
        Self { set: beside(self.set), ..self }
    }

    /// Whether a word of the set's is a trace of that flow, but for one in 2^16 that is another's.
    #[inline(always)]
    pub const fn has(self, word: u64) -> bool {
        word != 0 && (word ^ self.key) >> KEY_SHIFT == 0
    }
}
