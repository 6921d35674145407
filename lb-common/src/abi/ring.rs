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

/// What stands in a slot of the map of all rings: the index of the backend that new flows are led to, or [`NO_BACKEND`]; or, behind
/// a ring, a plain number (see [`Ring::members`]).
pub type Slot = u32;

/// What stands in a slot that no ring uses.
pub const NO_BACKEND: u32 = 0;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
