//! Where something lies within the elements of a map, and what is done there.

use core::intrinsics;

use lb_common::{
    abi::{Counters, Flow, RING_CHUNK_SLOTS, Slot},
    datapath::{Family, TraceSet, copy_ways, copy_word},
};

use crate::maps;

/// Where the copy of a flow's entry is that is at a way of a pair.
#[inline(always)]
pub(crate) fn copy_place<A: Family>(pair: u32, way: u32) -> Option<*mut Flow<A>> {
    let place = maps::FLOW_CACHE.get_ptr_mut(pair)?;
    let word = if copy_ways::<A>() == 1 { 0 } else { copy_word(way) };
    // SAFETY: it lies within the pair.
    Some(unsafe { place.cast::<u64>().add(word) }.cast())
}

/// Where its seal is.
#[inline(always)]
pub(crate) fn seal_place<A: Family>(pair: u32, way: u32) -> Option<*mut u64> {
    let place = copy_place::<A>(pair, way)?;
    // SAFETY: it lies within the copy.
    Some(unsafe { place.cast::<u64>().add(Flow::<A>::SEAL_WORD) })
}

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
pub(crate) unsafe fn confirmed(place: *mut u64) -> u64 {
    // SAFETY: the caller says that it is valid and aligned.
    unsafe { intrinsics::atomic_xadd::<u64, u64, { intrinsics::AtomicOrdering::SeqCst }>(place, 0) }
}

/// Reads a set of traces after all that came before.
#[inline(always)]
pub(crate) unsafe fn confirmed_set(words: *mut TraceSet) -> TraceSet {
    // SAFETY: the caller says that it is valid and aligned.
    let (first, words) = unsafe { (confirmed(words.cast()), words.read_volatile()) };
    let [_, second, third, fourth] = words;
    [first, second, third, fourth]
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
