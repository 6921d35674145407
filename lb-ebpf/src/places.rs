//! Where something lies within the elements of a map, and what is done there.

use core::intrinsics;

use bytemuck::Zeroable;
use lb_common::{
    abi::{Counters, RING_CHUNK_SLOTS, Slot},
    datapath::{REPLY_WAYS, ReplyRest, ReplySet, TracePlace, TraceSet},
    wire::Address,
};

use crate::maps;

/// Replaces a number that other CPUs change as well, before all that comes after it and after all that came before. In Linux
/// since 5.12 (commit 5ffa25502b5a).
#[inline(always)]
pub(crate) unsafe fn exchange(place: *mut u64, number: u64) {
    // SAFETY: the caller says that it is valid and aligned.
    unsafe {
        intrinsics::atomic_xchg::<u64, { intrinsics::AtomicOrdering::SeqCst }>(place, number);
    }
}

/// Reads such a number, after all that came before. An addition that returns what was there is ordered, in Linux since 5.12
/// (commit 5ca419f2864a).
#[inline(always)]
unsafe fn confirmed(place: *mut u64) -> u64 {
    // SAFETY: the caller says that it is valid and aligned.
    unsafe { intrinsics::atomic_xadd::<u64, u64, { intrinsics::AtomicOrdering::SeqCst }>(place, 0) }
}

/// Reads a set of traces after all that came before.
#[inline(always)]
unsafe fn confirmed_set(words: *mut TraceSet) -> TraceSet {
    // SAFETY: the caller says that it is valid and aligned.
    let (first, words) = unsafe { (confirmed(words.cast()), words.read_volatile()) };
    let [_, second, third, fourth] = words;
    [first, second, third, fourth]
}

/// Reads the traces that a set begins with.
#[inline(always)]
pub(crate) fn read_set<S, const WAYS: usize>(set: Option<*const S>) -> [u64; WAYS] {
    // SAFETY: the map's value is valid, aligned and begins with them. Each word is read once, whoever writes it.
    set.map_or([0; WAYS], |set| unsafe { set.cast::<[u64; WAYS]>().read_volatile() })
}

/// The same after all that came before.
#[inline(always)]
pub(crate) fn read_confirmed_set<S>(set: Option<*mut S>) -> TraceSet {
    // SAFETY: as above.
    set.map_or(TraceSet::default(), |set| unsafe { confirmed_set(set.cast()) })
}

/// Reads the other half of a trace of replies.
#[inline(always)]
pub(crate) fn read_rest<A: Address>(set: Option<*const ReplySet<A>>, way: usize) -> ReplyRest<A> {
    // SAFETY: the map's value is valid and aligned, and it is one of the set's. Each word is read once, whoever writes it.
    let read = |set: *const ReplySet<A>| unsafe {
        let rests = (&raw const (*set).rests).cast::<ReplyRest<A>>();
        rests.add(way % REPLY_WAYS).read_volatile()
    };
    set.map_or_else(ReplyRest::zeroed, read)
}

/// Replaces both halves of a trace of replies, the second one first.
#[inline(always)]
pub(crate) fn write_reply<A: Address>(
    set: Option<*mut ReplySet<A>>,
    way: usize,
    word: u64,
    rest: &ReplyRest<A>,
) {
    let Some(set) = set else { return };
    // SAFETY: as above.
    unsafe {
        let rests = (&raw mut (*set).rests).cast::<ReplyRest<A>>();
        rests.add(way % REPLY_WAYS).write_volatile(*rest);
        exchange(set.cast::<u64>().add(way % REPLY_WAYS), word);
    }
}

/// Erases a trace of replies.
#[inline(always)]
pub(crate) fn erase_reply<A: Address>(set: Option<*mut ReplySet<A>>, way: usize) {
    let Some(set) = set else { return };
    // SAFETY: as above; the traces are what it begins with.
    unsafe { exchange(set.cast::<u64>().add(way % REPLY_WAYS), 0) };
}

/// Erases the traces of a flow's replies in its set.
#[inline(always)]
pub(crate) fn erase_replies<A: Address>(set: Option<*mut ReplySet<A>>, place: TracePlace) {
    let Some(set) = set else { return };
    for way in 0..REPLY_WAYS {
        // SAFETY: as above.
        unsafe {
            let word = set.cast::<u64>().add(way);
            if place.has(confirmed(word)) {
                exchange(word, 0);
            }
        }
    }
}

/// Reads how many connections there are.
#[inline(always)]
pub(crate) fn read_load(load: Option<*const i64>) -> i64 {
    // SAFETY: the map's value is valid and aligned.
    load.map_or(0, |load| unsafe { load.read_volatile() })
}

/// Adds to a number that other CPUs add to as well.
#[inline(always)]
pub(crate) unsafe fn add(place: *mut i64, number: i64) {
    // SAFETY: the caller says that it is valid and aligned.
    unsafe {
        intrinsics::atomic_xadd::<i64, i64, { intrinsics::AtomicOrdering::Relaxed }>(place, number);
    }
}

/// Where a slot of the map of all rings is.
#[inline(always)]
pub(crate) fn ring_place(slot: u32) -> Option<*mut Slot> {
    let chunk = maps::RINGS.get_ptr_mut(slot / RING_CHUNK_SLOTS)?;
    // SAFETY: the map's value is that many slots.
    Some(unsafe { chunk.cast::<Slot>().add((slot % RING_CHUNK_SLOTS) as usize) })
}

/// Changes this CPU's counters, where there are any.
#[inline(always)]
pub(crate) fn update(counters: Option<*mut Counters>, change: impl FnOnce(&mut Counters)) {
    if let Some(counters) = counters {
        // SAFETY: the map's value is valid, and this CPU's alone while the program runs.
        change(unsafe { &mut *counters });
    }
}
