//! Where flows by direct return are that were looked up lately.
//!
//! A trace is a word that says at which backend a flow is, and how it gets there; that is all that its packets need. It stands in a
//! set of the flow's, or in the one beside it where that is full, which is in the same line of a processor's cache ([`super::trace_places`]).
//! It holds for some seconds, so that the flow's entry knows by and by that it lives. Which set, and 34 bits of the trace, depend on a secret, on all that identifies the flow, and on the station that its frames are for: nobody can have the
//! same as somebody else's on purpose, and one among 10^10 has by chance.
//!
//! A trace that holds keeps its place: where more flows are busy than there are places, some leave none. What changes an entry, or
//! removes it, erases its traces afterwards; and who leaves a trace looks at the entry once more, and erases it if that isn't the same any
//! longer. So one of the two sees what the other has done.

use bytemuck::Zeroable;

use super::{
    Family, FamilyTables, Table, Tables, hash,
    parse::Segment,
    trace_places::{KEY_SHIFT, TRACE_WAYS, TracePlace, TraceSet, beside},
};
use crate::abi::{Beat, CHECK_SERVICE, Direction, Flow, FlowState, Forwarding, Link, Settings};

/// For how long a trace holds at most, in ticks: so many beats. For so long a flow's entry may not know of its newest packet.
pub const TRACE_TICKS: u32 = 8;

/// Bits of a trace that name the backend; above them are those of its forwarding, then those of the time, then the flow's own.
const BACKEND_BITS: u32 = 20;
const FORWARDING_BITS: u32 = 2;
pub(super) const TIME_SHIFT: u32 = BACKEND_BITS + FORWARDING_BITS;
const TIME_BITS: u32 = 8;
const OWN_SHIFT: u32 = TIME_SHIFT + TIME_BITS;
/// All that are the flow's own, and those of its key alone.
pub(super) const OWN_BITS: u64 = u64::MAX << OWN_SHIFT;
pub(super) const KEY_BITS: u64 = u64::MAX << KEY_SHIFT;

/// Where a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Home {
    /// The backend's index.
    pub(super) backend: u32,
    /// How the flow gets there.
    pub(super) forwarding: Forwarding,
}

impl Home {
    /// What a trace says, of a flow by direct return or of others.
    #[inline(always)]
    pub(super) const fn of_word(word: u64, is_direct: bool) -> Self {
        let number = (word >> BACKEND_BITS) as u8 & 3;
        let forwarding =
            if is_direct { Forwarding::direct(number) } else { Forwarding::through(number) };
        Self { backend: word as u32 & ((1 << BACKEND_BITS) - 1), forwarding }
    }

    /// Whether a trace can say so.
    #[inline(always)]
    pub(super) const fn has_room(self) -> bool {
        self.backend >> BACKEND_BITS == 0
    }
}

/// What a flow's trace says beside where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Zeroable)]
#[repr(C)]
pub(super) struct Trace {
    /// Its time and its own bits, in their place.
    pub(super) upper: u64,
    /// In which set it stands.
    pub(super) set: u32,
    /// In which set of those of replies it stands, if it is one.
    pub(super) reply_set: u32,
}

impl Trace {
    /// That of a segment's flow at a moment.
    #[inline(always)]
    pub(super) fn new<A: Family>(segment: &Segment<A>, settings: &Settings, now: Beat) -> Self {
        let hash = hash::keyed(&segment.key, settings.secret);
        let place = TracePlace::of_hash(hash, settings.trace_mask);
        Self::at(place, hash ^ number_of(&segment.link), now)
    }

    /// That of a flow whose traces have that place, where its other bits depend on `station`.
    #[inline(always)]
    pub(super) fn at(TracePlace { set, key }: TracePlace, station: u64, now: Beat) -> Self {
        // Not all at the same moment, but for those that stand beside each other.
        let time = u64::from(now.number().wrapping_add(set >> 1) / TRACE_TICKS);
        let time = (time << TIME_SHIFT) & !(u64::MAX << OWN_SHIFT);
        let station = hash::mix_half(station);
        let station = (station >> (64 - KEY_SHIFT)) & (u64::MAX << OWN_SHIFT);
        Self { upper: key | station | time, set, reply_set: 0 }
    }

    /// Where the flow is, if its trace is there.
    #[inline(always)]
    pub(super) fn find<T: Tables>(&self, tables: &T) -> Option<Home> {
        let found = self.find_in(tables.traces(self.set));
        found.or_else(|| self.find_in(tables.traces(beside(self.set))))
    }

    #[inline(always)]
    fn find_in(&self, words: TraceSet) -> Option<Home> {
        for word in words {
            if (word ^ self.upper) >> TIME_SHIFT == 0 {
                return Some(Home::of_word(word, true));
            }
        }
        None
    }

    /// The word of a flow that is there.
    #[inline(always)]
    pub(super) const fn word(&self, home: Home) -> u64 {
        let forwarding = home.forwarding.number_of_way() as u64;
        self.upper | forwarding << BACKEND_BITS | home.backend as u64
    }

    /// Which way of a set it takes; as many as there are: there is no room.
    #[inline(always)]
    pub(super) fn way<const WAYS: usize>(&self, words: [u64; WAYS]) -> usize {
        let mut free = WAYS;
        for (way, word) in (0..).zip(words) {
            let differing = word ^ self.upper;
            if differing >> OWN_SHIFT == 0 {
                return way;
            }
            if word == 0 || (differing >> TIME_SHIFT) & ((1 << TIME_BITS) - 1) != 0 {
                free = way;
            }
        }
        free
    }

    /// Leaves the trace of a flow that was looked up, if it may have one and there is room.
    #[inline(always)]
    pub(super) fn leave<A: Family, T: FamilyTables<A>>(
        &self,
        tables: &T,
        segment: &Segment<A>,
        flow: &Flow<A>,
    ) {
        let home = Home { backend: flow.backend, forwarding: flow.forwarding };
        let mut set = self.set;
        let mut way = self.way(tables.traces(set));
        if way == TRACE_WAYS {
            set = beside(set);
            way = self.way(tables.traces(set));
        }
        if way == TRACE_WAYS || !tables.is_station(&segment.station()) {
            return;
        }
        tables.set_trace(set, way, self.word(home));
        let is_same = match tables.find(Table::Established, &segment.key) {
            Some(entry) => {
                let entry = entry.read();
                may_have_trace(&entry)
                    && (entry.backend == home.backend) & (entry.forwarding == home.forwarding)
            }
            None => false,
        };
        // The controller, too, takes a station away before it erases all traces.
        if !is_same || !tables.is_station(&segment.station()) {
            tables.set_trace(set, way, 0);
        }
    }
}

/// Whether a flow's entry may have a trace.
#[inline(always)]
pub(super) fn may_have_trace<A: Family>(flow: &Flow<A>) -> bool {
    flow.state == FlowState::ESTABLISHED
        && flow.direction == Direction::ToBackend as u8
        && !flow.forwarding.sees_replies()
        && flow.service != CHECK_SERVICE
        && Home { backend: flow.backend, forwarding: flow.forwarding }.has_room()
}

/// A number of the station that frames are for.
#[inline(always)]
fn number_of(link: &Link) -> u64 {
    let [interface, first, second, _, vlans]: [u32; 5] = bytemuck::cast(*link);
    let own = u64::from(second & 0xffff) << 32 | u64::from(first);
    hash::mix_half(own) ^ (u64::from(vlans) << 32 | u64::from(interface))
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::{
        super::trace_places::{FLOWS_A_SET, TRACE_SETS, trace_sets},
        *,
    };
    use crate::abi::FlowKey;
    use crate::wire::{Ipv4Address, MacAddress, NetworkU16, PROTOCOL_TCP};

    const HOME: Home = Home { backend: 0xf_fffe, forwarding: Forwarding::Gue };

    fn segment(number: u32) -> Segment<Ipv4Address> {
        let mut segment = Segment::zeroed();
        segment.key = FlowKey {
            source: Ipv4Address::from(Ipv4Addr::from(0x0a00_0000 + (number >> 8))),
            destination: Ipv4Address::from(Ipv4Addr::new(192, 0, 2, 2)),
            source_port: NetworkU16::new(1000 + (number & 0xff) as u16),
            destination_port: NetworkU16::new(443),
            protocol: PROTOCOL_TCP.into(),
        };
        segment.link.own = MacAddress::new([2, 0, 0, 0, 0, 1]);
        segment
    }

    fn trace_of(segment: &Segment<Ipv4Address>, beat: u32) -> Trace {
        let settings = Settings {
            secret: 0x0123_4567_89ab_cdef,
            trace_mask: TRACE_SETS - 1,
            ..Settings::default()
        };
        Trace::new(segment, &settings, Beat::of_jiffies(beat.into(), 0))
    }

    fn trace(number: u32, beat: u32) -> Trace {
        trace_of(&segment(number), beat)
    }

    #[test]
    fn a_trace_says_where_its_flow_is_for_its_time() {
        let mut changes = 0;
        for beat in 100..200 {
            let (now, next) = (trace(1, beat), trace(1, beat + 1));
            assert_eq!(now.set, next.set);
            for forwarding in [Forwarding::Dsr, Forwarding::Ipip, Forwarding::Gue] {
                let home = Home { forwarding, ..HOME };
                let words = [0, 0, now.word(home), 0];
                assert_eq!(now.find_in(words), Some(home));
                assert_eq!(next.find_in(words).is_some(), now == next);
            }
            changes += u32::from(now != next);
        }
        assert!((100 / TRACE_TICKS).abs_diff(changes) <= 1, "{changes}");
    }

    #[test]
    fn a_trace_is_that_of_frames_for_one_station() {
        let mine = segment(1);
        let words = [trace(1, 100).word(HOME), 0, 0, 0];
        assert_eq!(trace(1, 100).find_in(words), Some(HOME));
        let changes: [fn(&mut Link); 5] = [
            |link| link.own = MacAddress::new([2, 0, 0, 0, 0, 2]),
            |link| link.own = MacAddress::new([2, 0, 0, 1, 0, 1]),
            |link| link.interface = 1,
            |link| {
                link.interface ^= 1;
                link.own = MacAddress::new([2, 0, 0, 0, 0, 0]);
            },
            |link| link.vlans = bytemuck::cast(1_u32),
        ];
        for change in changes {
            let mut other = mine;
            change(&mut other.link);
            let other = trace_of(&other, 100);
            assert_eq!((other.set, other.find_in(words)), (trace(1, 100).set, None));
        }
        // Whoever sends it.
        let mut other = mine;
        other.link.station = MacAddress::new([2, 0, 0, 0, 0, 9]);
        assert_eq!(trace_of(&other, 100), trace(1, 100));
    }

    #[test]
    fn traces_that_hold_keep_their_places() {
        let traces = [1, 2, 3, 4, 5].map(|number| Trace { set: 0, ..trace(number, 100) });
        let same_time = |trace: Trace| Trace {
            upper: trace.upper & (u64::MAX << OWN_SHIFT) | 7 << TIME_SHIFT,
            ..trace
        };
        let traces = traces.map(same_time);
        let mut words = TraceSet::default();
        for trace in &traces[..TRACE_WAYS] {
            let way = trace.way(words);
            assert_eq!(words[way], 0);
            words[way] = trace.word(HOME);
        }
        for trace in &traces[..TRACE_WAYS] {
            assert_eq!(words[trace.way(words)], trace.word(HOME));
        }
        let last = traces[TRACE_WAYS];
        assert_eq!(last.way(words), TRACE_WAYS);
        // Of another time, one doesn't hold any longer.
        words[2] ^= 1 << TIME_SHIFT;
        assert_eq!(last.way(words), 2);
    }

    #[test]
    fn there_is_room_for_as_many_flows_as_there_may_be() {
        for (flows, before, sets) in [
            (0, 0, 1 << 11),
            (4097, 1 << 11, 1 << 12),
            (65_536, 1 << 11, 1 << 15),
            (60_000, 1 << 15, 1 << 15),
            (16_384, 1 << 15, 1 << 15),
            (8192, 1 << 15, 1 << 12),
            (u32::MAX, 1 << 15, TRACE_SETS),
            (400_000, TRACE_SETS, TRACE_SETS),
        ] {
            assert_eq!(trace_sets(flows, before), sets, "{flows}, {before}");
        }
        let mut sets = std::collections::HashMap::<u32, TraceSet>::new();
        let (mut wrong, mut without) = (0, 0);
        let flows = TRACE_SETS * FLOWS_A_SET;
        for number in 0..flows {
            let trace = trace(number, 100);
            let places = [trace.set, beside(trace.set)].map(|set| {
                let words = *sets.entry(set).or_default();
                wrong += u32::from(trace.find_in(words).is_some());
                (set, trace.way(words))
            });
            match places.into_iter().find(|(_, way)| *way < TRACE_WAYS) {
                Some((set, way)) => sets.entry(set).or_default()[way] = trace.word(HOME),
                None => without += 1,
            }
        }
        assert_eq!(wrong, 0, "taken for another");
        assert!(without < flows / 100, "{without} have no place");
    }
}
