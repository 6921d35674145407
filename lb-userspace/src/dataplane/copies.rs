//! The memory that copies of flows' entries are in.

use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::MapData;
use lb_common::{
    abi::{CachePair, Flow, FlowKey, maps},
    datapath::{CopyPlace, copy_ways, copy_word},
    wire::Address,
};

use super::{DataplaneError, mapped::Mapped};

/// The map of copies of flows' entries, mapped into this process.
pub struct CopyMemory(Mapped<AtomicU64>);

impl CopyMemory {
    /// Maps the memory.
    ///
    /// # Errors
    ///
    /// The map's elements aren't [`CachePair`]s, or the kernel refuses.
    pub fn new(map: MapData) -> Result<Self, DataplaneError> {
        Mapped::new(map, maps::FLOW_CACHE, size_of::<CachePair>()).map(Self)
    }

    /// Erases the copy of the entry of `key`, which was just removed or changed, if there is one. `secret` is that of
    /// [`lb_common::abi::Settings`].
    pub fn erase<A: Address>(&self, key: &FlowKey<A>, secret: u64) {
        let place = CopyPlace::of(key, secret);
        let pair = place.pair as usize * (size_of::<CachePair>() / size_of::<u64>());
        for way in 0..copy_ways::<A>() {
            let word = pair + copy_word(way) + Flow::<A>::SEAL_WORD;
            let Some(seal) = self.0.words().get(word) else { continue };
            // By an addition, it isn't read before the entry was changed.
            if place.may_be_at(seal.fetch_add(0, Ordering::SeqCst)) {
                seal.store(0, Ordering::SeqCst);
            }
        }
    }

    /// Erases all of them.
    pub fn clear(&self) {
        self.0.clear();
    }
}
