//! The memory that holds all rings, and those that hold sets of ports and the pools of source ports.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::maps::MapData;
use lb_common::abi::{PortBits, PortSet, RingChunk, Slot, maps};

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

    /// Writes backend indices, or other numbers, from slot `offset` on.
    ///
    /// # Panics
    ///
    /// They don't all fit.
    pub fn write(&self, offset: u32, numbers: &[Slot]) {
        let slots = &self.0.words()[offset as usize..][..numbers.len()];
        for (slot, number) in slots.iter().zip(numbers) {
            slot.store(*number, Ordering::Relaxed);
        }
    }

    /// The backend indices, or other numbers, in `count` slots from `offset` on; none where that isn't within the map.
    pub fn read(&self, offset: u32, count: u32) -> Vec<u32> {
        self.range(offset, count).iter().map(|slot| slot.load(Ordering::Relaxed)).collect()
    }

    fn range(&self, offset: u32, count: u32) -> &[AtomicU32] {
        let rest = self.0.words().get(offset as usize..);
        rest.and_then(|rest| rest.get(..count as usize)).unwrap_or_default()
    }
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
