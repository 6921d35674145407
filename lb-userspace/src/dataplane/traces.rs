//! The memory that traces of flows are in.

use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{Array, MapData};
use lb_common::{
    abi::{FlowKey, Settings, maps},
    datapath::{NatTraceSet, REPLY_WAYS, ReplySet, TRACE_WAYS, TracePlace, TraceSet},
    wire::Address,
};

use super::{DataplaneError, mapped::Mapped};

/// A map of traces, mapped into this process.
pub struct TraceMemory {
    memory: Mapped<AtomicU64>,
    /// Words of a set. It begins with one of each trace, which says whose it is.
    words: usize,
    /// Traces of a set.
    ways: usize,
}

impl TraceMemory {
    /// Maps the memory of those of flows by direct return.
    ///
    /// # Errors
    ///
    /// The map's elements aren't [`TraceSet`]s, or the kernel refuses.
    pub fn new(map: MapData) -> Result<Self, DataplaneError> {
        Self::of_sets(map, maps::TRACES, (size_of::<TraceSet>(), TRACE_WAYS))
    }

    /// The same of flows whose replies pass through us.
    ///
    /// # Errors
    ///
    /// The map's elements aren't [`NatTraceSet`]s, or the kernel refuses.
    pub fn of_nat(map: MapData) -> Result<Self, DataplaneError> {
        Self::of_sets(map, maps::NAT_TRACES, (size_of::<NatTraceSet>(), TRACE_WAYS))
    }

    /// The same of replies to clients of a family.
    ///
    /// # Errors
    ///
    /// The map's elements aren't [`ReplySet`]s, or the kernel refuses.
    pub fn of_replies<A: Address>(
        map: MapData,
        name: &'static str,
    ) -> Result<Self, DataplaneError> {
        Self::of_sets(map, name, (size_of::<ReplySet<A>>(), REPLY_WAYS))
    }

    /// Of sets of so many bytes, with so many traces each.
    fn of_sets(
        map: MapData,
        name: &'static str,
        (set, ways): (usize, usize),
    ) -> Result<Self, DataplaneError> {
        Ok(Self { memory: Mapped::new(map, name, set)?, words: set / size_of::<u64>(), ways })
    }

    /// Erases those of the flow whose traces have this place, and whose entry was just removed or changed.
    fn erase(&self, place: TracePlace) {
        let start = place.set as usize * self.words;
        let words = self.memory.words().get(start..start + self.ways).unwrap_or_default();
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
    /// Traces of flows by direct return.
    pub traces: TraceMemory,
    /// Traces of flows whose replies pass through us.
    pub nat_traces: TraceMemory,
    /// Traces of their replies, over IPv4.
    pub replies: TraceMemory,
    /// The same over IPv6.
    pub replies_ipv6: TraceMemory,
    /// Which tell where all are, now: where traces are changes with their number.
    pub(super) settings: Array<MapData, Settings>,
}

impl Shortcuts {
    /// Erases those of the entry of `key`, which was just removed or changed.
    pub fn erase<A: Address>(&self, key: &FlowKey<A>) {
        if let Ok(settings) = self.settings.get(&0, 0) {
            let place = TracePlace::of(key, &settings);
            self.traces.erase(place);
            self.traces.erase(place.beside());
            self.nat_traces.erase(TracePlace::of_nat(key, &settings));
            let replies = if A::WORDS == 1 { &self.replies } else { &self.replies_ipv6 };
            let place = TracePlace::of_reply(key, &settings);
            replies.erase(place);
            replies.erase(place.beside());
        } else {
            // Nobody knows where they are, but they can all go.
            self.clear();
        }
    }

    /// Erases those of flows whose replies pass through us.
    pub fn clear_through(&self) {
        self.nat_traces.clear();
        self.clear_replies();
    }

    /// Erases those that depend on our own hardware addresses.
    pub fn clear_by_station(&self) {
        self.traces.clear();
        self.clear_replies();
    }

    /// Erases all of them.
    pub fn clear(&self) {
        self.traces.clear();
        self.clear_through();
    }

    fn clear_replies(&self) {
        self.replies.clear();
        self.replies_ipv6.clear();
    }
}
