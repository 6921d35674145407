//! The memory that holds all rings, and those that hold sets of ports and the pools of source ports.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use aya::maps::MapData;
use lb_common::abi::{PortBits, PortSet, Ring, RingChunk, Slot, maps};

use super::{DataplaneError, mapped::Mapped};

/// The map of all rings, mapped into this process. One word a slot: [`Slot`].
pub struct RingMemory(Mapped<AtomicU32>);

impl RingMemory {
    /// Maps the memory.
    ///
    /// # Errors
    ///
    /// The map's elements aren't [`RingChunk`]s, or the kernel refuses.
    pub fn new(map: MapData) -> Result<Self, DataplaneError> {
        Mapped::new(map, maps::RINGS, size_of::<RingChunk>()).map(Self)
    }

    /// Number of slots.
    pub const fn slots(&self) -> u32 {
        self.0.words().len() as u32
    }

    /// Writes backend indices, or other numbers, from slot `offset` on. The slots are settled.
    ///
    /// # Panics
    ///
    /// They don't all fit.
    pub fn write(&self, offset: u32, numbers: &[u32]) {
        let slots = &self.0.words()[offset as usize..][..numbers.len()];
        for (slot, number) in slots.iter().zip(numbers) {
            slot.store(Slot::new(*number).word(), Ordering::Relaxed);
        }
    }

    /// Writes the backend indices of a ring that comes in the place of another, which may be of any size. Where that led to
    /// the same backend, this one is as settled, and elsewhere unsettled.
    ///
    /// # Panics
    ///
    /// They don't all fit.
    pub fn write_after(&self, before: Ring, ring: Ring, backends: &[u32]) {
        let old = if before.size() == ring.size() { self.slots_of(before) } else { &[] };
        let mut old = old.iter().map(load);
        let slots = &self.0.words()[ring.offset() as usize..][..backends.len()];
        for (slot, backend) in slots.iter().zip(backends) {
            let new = Slot::new(*backend).unsettled();
            let same = old.next().filter(|old| old.number() == new.number());
            slot.store(same.unwrap_or(new).word(), Ordering::Relaxed);
        }
    }

    /// Unsettles all slots of a ring, also those that were about to settle.
    pub fn unsettle(&self, ring: Ring) {
        for slot in self.slots_of(ring) {
            unsettle(slot, Slot::UNSETTLED);
        }
    }

    /// Makes the slots of a ring as unsettled as those of the one of the same size that was there before, and those wholly that
    /// lead elsewhere.
    pub fn unsettle_after(&self, before: Ring, ring: Ring) {
        for (old, slot) in self.slots_of(before).iter().zip(self.slots_of(ring)) {
            let old = load(old);
            let same = old.number() == load(slot).number();
            unsettle(slot, if same { old.word() & Slot::UNSETTLED } else { Slot::UNSETTLED });
        }
    }

    /// Looks at a ring's slots after a look through all flows. Those that `strays` names, by their places in the map, lead
    /// elsewhere than to where all their flows are.
    pub fn settle(&self, ring: Ring, strays: &HashSet<u32>) {
        for (place, slot) in (ring.offset()..).zip(self.slots_of(ring)) {
            if strays.contains(&place) {
                continue;
            }
            let before = load(slot);
            if !before.is_settled() {
                let after = before.settling().word();
                // A packet may just have unsettled it.
                let _: Result<u32, u32> = slot.compare_exchange(
                    before.word(),
                    after,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
            }
        }
    }

    /// Unsettles the slot at a place of the map.
    pub fn unsettle_slot(&self, place: u32) {
        if let Some(slot) = self.0.words().get(place as usize) {
            unsettle(slot, Slot::UNSETTLED);
        }
    }

    /// What stands at a place of the map.
    pub fn slot(&self, place: u32) -> Slot {
        self.0.words().get(place as usize).map_or(Slot::default(), load)
    }

    /// The backend indices, or other numbers, in `count` slots from `offset` on; none where that isn't within the map.
    pub fn read(&self, offset: u32, count: u32) -> Vec<u32> {
        self.range(offset, count).iter().map(|slot| load(slot).number()).collect()
    }

    fn slots_of(&self, ring: Ring) -> &[AtomicU32] {
        self.range(ring.offset(), ring.size())
    }

    fn range(&self, offset: u32, count: u32) -> &[AtomicU32] {
        let rest = self.0.words().get(offset as usize..);
        rest.and_then(|rest| rest.get(..count as usize)).unwrap_or_default()
    }
}

/// Sets bits of [`Slot::UNSETTLED`].
fn unsettle(slot: &AtomicU32, bits: u32) {
    if load(slot).word() & bits != bits {
        slot.fetch_or(bits, Ordering::Relaxed);
    }
}

fn load(slot: &AtomicU32) -> Slot {
    Slot::from_word(slot.load(Ordering::Relaxed))
}

/// The map of sets of ports, mapped into this process.
pub struct PortSets(Mapped<AtomicU64>);

impl PortSets {
    /// Maps the memory.
    ///
    /// # Errors
    ///
    /// The map's element isn't [`PortBits`], or the kernel refuses.
    pub fn new(map: MapData) -> Result<Self, DataplaneError> {
        Mapped::new(map, maps::PORT_SETS, size_of::<PortBits>()).map(Self)
    }

    /// Adds ports to a set.
    pub fn add(&self, set: PortSet, ports: impl IntoIterator<Item = u16>) {
        for (word, bit) in ports.into_iter().map(|port| PortBits::place(set, port)) {
            if let Some(word) = self.0.words().get(word)
                && word.load(Ordering::Relaxed) & bit == 0
            {
                word.fetch_or(bit, Ordering::SeqCst);
            }
        }
    }

    /// Whether a port is in a set.
    pub fn has(&self, set: PortSet, port: u16) -> bool {
        let (word, bit) = PortBits::place(set, port);
        self.0.words().get(word).is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0)
    }
}

/// The map of all pools of source ports, mapped into this process.
pub struct PortMemory(Mapped<AtomicU64>);

impl PortMemory {
    /// Maps the memory.
    ///
    /// # Errors
    ///
    /// The map's elements aren't words of 64 bits, or the kernel refuses.
    pub fn new(map: MapData) -> Result<Self, DataplaneError> {
        Mapped::new(map, maps::NAT_PORTS, size_of::<u64>()).map(Self)
    }

    /// The words.
    pub const fn words(&self) -> &[AtomicU64] {
        self.0.words()
    }
}
