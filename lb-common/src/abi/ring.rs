//! Rings: a service's consistent-hash table from slot to backend.

use bytemuck::{Pod, Zeroable};

/// Where a ring lies in the map of all rings, in one word, so that switching to another ring is one
/// update: offset in slots (32 bits), size in slots (20 bits), generation (12 bits, wrapping).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Ring(u64);

impl Ring {
    /// Largest size in slots.
    pub const MAXIMUM_SIZE: u32 = (1 << 20) - 1;

    /// A ring of `size` slots (at most [`Self::MAXIMUM_SIZE`]) from slot `offset` on.
    pub const fn new(offset: u32, size: u32, generation: u32) -> Self {
        assert!(size <= Self::MAXIMUM_SIZE);
        Self(offset as u64 | (size as u64) << 32 | ((generation & 0xfff) as u64) << 52)
    }

    /// Index of the first slot.
    #[inline(always)]
    pub const fn offset(self) -> u32 {
        self.0 as u32
    }

    /// Number of slots; zero for a ring without backends.
    #[inline(always)]
    pub const fn size(self) -> u32 {
        (self.0 >> 32) as u32 & Self::MAXIMUM_SIZE
    }

    /// Counts the rings that the service has had; 0 to 4095, wrapping.
    pub const fn generation(self) -> u32 {
        (self.0 >> 52) as u32
    }

    /// Where, within the whole map, the number of backends stands that take new flows, behind the ring's slots.
    /// Behind it stand their indices, each once.
    #[inline(always)]
    pub const fn members(self) -> u32 {
        self.offset().wrapping_add(self.size())
    }

    /// The slot, within the whole map, that a hash falls into. Multiplying and shifting spreads 32
    /// bits evenly over any size without a division.
    #[inline(always)]
    pub const fn slot(self, hash: u32) -> u32 {
        self.offset().wrapping_add(((hash as u64 * self.size() as u64) >> 32) as u32)
    }
}

/// Slots in one element of the map: elements are padded to eight bytes, so a slot of four bytes
/// each would waste half of the cache.
pub const RING_CHUNK_SLOTS: u32 = 16;

/// One element of the map of all rings.
pub type RingChunk = [Slot; RING_CHUNK_SLOTS as usize];

/// What stands in a slot of the map of all rings, in one word: the index of the backend that new flows are led to, or
/// [`NO_BACKEND`]; or, behind a ring, a plain number (see [`Ring::members`]). The three highest bits of a slot are set
/// where it is *unsettled*: flows that it leads to its backend may be at another one, by direct return, so each of their
/// packets has to be looked up. Each look through the tables of flows that finds none of them takes one bit away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Slot(u32);

impl Slot {
    /// The bits of an unsettled one.
    pub const UNSETTLED: u32 = 0b111 << 29;

    /// From its word.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// Its word.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0
    }

    /// One that leads to a backend, or a number below 2^29.
    #[inline(always)]
    pub const fn new(number: u32) -> Self {
        Self(number & !Self::UNSETTLED)
    }

    /// The backend's index, or the number.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0 & !Self::UNSETTLED
    }

    /// Whether every flow by direct return that it leads anywhere is where it leads.
    #[inline(always)]
    pub const fn is_settled(self) -> bool {
        self.0 & Self::UNSETTLED == 0
    }

    /// The same, unsettled.
    #[inline(always)]
    #[must_use]
    pub const fn unsettled(self) -> Self {
        Self(self.0 | Self::UNSETTLED)
    }

    /// The same after a look through the tables that found no flow elsewhere.
    #[inline(always)]
    #[must_use]
    pub const fn settling(self) -> Self {
        Self(self.number() | (self.0 >> 1 & Self::UNSETTLED))
    }
}

/// What stands in a slot that no ring uses.
pub const NO_BACKEND: u32 = 0;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_slot_settles_in_three_looks() {
        let mut slot = Slot::new(7).unsettled();
        for _ in 0..3 {
            assert_eq!((slot.number(), slot.is_settled()), (7, false));
            slot = slot.settling();
        }
        assert_eq!(slot, Slot::new(7));
        assert_eq!(slot.settling(), slot);
    }

    proptest! {
        #[test]
        fn the_parts_come_back(offset: u32, size in 0..=Ring::MAXIMUM_SIZE, generation: u32) {
            let ring = Ring::new(offset, size, generation);
            prop_assert_eq!(ring.offset(), offset);
            prop_assert_eq!(ring.size(), size);
            prop_assert_eq!(ring.generation(), generation % 4096);
        }

        #[test]
        fn a_slot_lies_within_its_ring(
            offset in 0..1u32 << 30, size in 1..=Ring::MAXIMUM_SIZE, hash: u32
        ) {
            let slot = Ring::new(offset, size, 0).slot(hash);
            prop_assert!((offset..offset + size).contains(&slot));
        }
    }
}
