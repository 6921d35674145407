//! The memory that holds all rings, and the one that holds the pools of source ports.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::maps::MapData;
use lb_common::abi::{RingChunk, maps};

use super::{DataplaneError, mapped::Mapped};

/// The map of all rings, mapped into this process. One word a slot: the backend's index.
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

    /// Writes backend indices from slot `offset` on.
    ///
    /// # Panics
    ///
    /// They don't all fit.
    pub fn write(&self, offset: u32, backends: &[u32]) {
        let slots = &self.0.words()[offset as usize..][..backends.len()];
        for (slot, backend) in slots.iter().zip(backends) {
            slot.store(*backend, Ordering::Relaxed);
        }
    }

    /// The backend indices in `count` slots from `offset` on; none where that isn't within the map.
    pub fn read(&self, offset: u32, count: u32) -> Vec<u32> {
        let slots =
            self.0.words().get(offset as usize..).and_then(|rest| rest.get(..count as usize));
        slots.unwrap_or_default().iter().map(|slot| slot.load(Ordering::Relaxed)).collect()
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
