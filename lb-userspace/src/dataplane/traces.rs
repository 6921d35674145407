//! The memory that traces of flows by direct return are in.

use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{Array, MapData};
use lb_common::{
    abi::{FlowKey, Settings, maps},
    datapath::{TRACE_WAYS, TracePlace, TraceSet},
    wire::Address,
};

use super::{CopyMemory, DataplaneError, mapped::Mapped};

/// The map of traces, mapped into this process.
pub struct TraceMemory(Mapped<AtomicU64>);

impl TraceMemory {
    /// Maps the memory.
    ///
    /// # Errors
    ///
    /// The map's elements aren't [`TraceSet`]s, or the kernel refuses.
    pub fn new(map: MapData) -> Result<Self, DataplaneError> {
        Mapped::new(map, maps::TRACES, size_of::<TraceSet>()).map(Self)
    }

    /// Erases the traces of the entry of `key`, which was just removed or changed.
    pub fn erase<A: Address>(&self, key: &FlowKey<A>, settings: &Settings) {
        let place = TracePlace::of(key, settings);
        let start = place.set as usize * TRACE_WAYS;
        let words = self.0.words().get(start..start + TRACE_WAYS).unwrap_or_default();
        for word in words {
            // By an addition, it isn't read before the entry was changed.
            if place.has(word.fetch_add(0, Ordering::SeqCst)) {
                word.store(0, Ordering::SeqCst);
            }
        }
    }

    /// Erases all of them.
    pub fn clear(&self) {
        self.0.clear();
    }
}

/// What packets go by that don't look at the tables of flows.
#[derive(Clone, Copy)]
pub struct Shortcuts<'m> {
    /// Copies of entries.
    pub copies: &'m CopyMemory,
    /// Traces of flows.
    pub traces: &'m TraceMemory,
    /// Which tell where both are, now: where traces are changes with their number.
    pub settings: &'m Array<MapData, Settings>,
}

impl Shortcuts<'_> {
    /// Erases those of the entry of `key`, which was just removed or changed.
    pub fn erase<A: Address>(&self, key: &FlowKey<A>) {
        if let Ok(settings) = self.settings.get(&0, 0) {
            self.copies.erase(key, settings.secret);
            self.traces.erase(key, &settings);
        } else {
            // Nobody knows where they are, but they can all go.
            self.copies.clear();
            self.traces.clear();
        }
    }
}
