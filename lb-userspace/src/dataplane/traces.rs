//! The memory that traces of flows are in.

use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{Array, MapData};
use lb_common::{
    abi::{FlowKey, Settings, maps},
    datapath::{NatTraceSet, TRACE_WAYS, TracePlace, TraceSet},
    wire::Address,
};

use super::{CopyMemory, DataplaneError, mapped::Mapped};

/// A map of traces, mapped into this process.
pub struct TraceMemory {
    memory: Mapped<AtomicU64>,
    /// Words of a set. It begins with those that say whose a trace is.
    words: usize,
}

impl TraceMemory {
    /// Maps the memory of those of flows by direct return.
    ///
    /// # Errors
    ///
    /// The map's elements aren't [`TraceSet`]s, or the kernel refuses.
    pub fn new(map: MapData) -> Result<Self, DataplaneError> {
        Self::of_sets(map, maps::TRACES, size_of::<TraceSet>())
    }

    /// The same of flows whose replies pass through us.
    ///
    /// # Errors
    ///
    /// The map's elements aren't [`NatTraceSet`]s, or the kernel refuses.
    pub fn of_nat(map: MapData) -> Result<Self, DataplaneError> {
        Self::of_sets(map, maps::NAT_TRACES, size_of::<NatTraceSet>())
    }

    fn of_sets(map: MapData, name: &'static str, set: usize) -> Result<Self, DataplaneError> {
        Ok(Self { memory: Mapped::new(map, name, set)?, words: set / size_of::<u64>() })
    }

    /// Erases those of the flow whose traces have this place, and whose entry was just removed or changed.
    fn erase(&self, place: TracePlace) {
        let start = place.set as usize * self.words;
        let words = self.memory.words().get(start..start + TRACE_WAYS).unwrap_or_default();
        for word in words {
            // By an addition, it isn't read before the entry was changed.
            if place.has(word.fetch_add(0, Ordering::SeqCst)) {
                word.store(0, Ordering::SeqCst);
            }
        }
    }

    /// Erases all of them.
    pub fn clear(&self) {
        self.memory.clear();
    }
}

/// What packets go by that don't look at the tables of flows.
pub struct Shortcuts {
    /// Copies of entries.
    pub copies: CopyMemory,
    /// Traces of flows by direct return.
    pub traces: TraceMemory,
    /// Traces of flows whose replies pass through us.
    pub nat_traces: TraceMemory,
    /// Which tell where all are, now: where traces are changes with their number.
    pub(super) settings: Array<MapData, Settings>,
}

impl Shortcuts {
    /// Erases those of the entry of `key`, which was just removed or changed.
    pub fn erase<A: Address>(&self, key: &FlowKey<A>) {
        if let Ok(settings) = self.settings.get(&0, 0) {
            self.copies.erase(key, settings.secret);
            let place = TracePlace::of(key, &settings);
            self.traces.erase(place);
            self.traces.erase(place.beside());
            self.nat_traces.erase(TracePlace::of_nat(key, &settings));
        } else {
            // Nobody knows where they are, but they can all go.
            self.clear();
        }
    }

    /// Erases all of them.
    pub fn clear(&self) {
        self.copies.clear();
        self.traces.clear();
        self.nat_traces.clear();
    }
}
