//! Which flows were looked up lately.
//!
//! A trace is a number of 18 bits at a place of the flow's, and holds for some seconds; the one after it is another
//! number, so that a flow which has the same as a neighbour (one in 10^5) is looked up by then. Places and numbers depend on a
//! secret, so that nobody can have the same as somebody else's on purpose.

use bytemuck::Zeroable;

use super::{Tables, hash};
use crate::{
    abi::{FlowKey, Moment, Settings},
    wire::Address,
};

/// Three traces at one place, in one word, above them the number of the time that they hold for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traces(u64);

/// Number of places that there are: enough for the traces of a million flows.
pub const TRACES: u32 = 1 << 19;
/// Least number that is used.
const LEAST_TRACES: u32 = 1 << 12;

/// How many of the places are best used for so many flows: the fewer there are, the better do they stay in a processor's cache.
/// While the number of flows changes, it stays as it was (`before`; 0: there was none) as long as that does.
#[inline(always)]
pub const fn trace_places(flows: u32, before: u32) -> u32 {
    // At most one flow for each place; then three in a hundred find theirs taken by three others.
    let most = if flows > TRACES { TRACES } else { flows.next_power_of_two() };
    let best = if most < LEAST_TRACES { LEAST_TRACES } else { most };
    if best > before || best < before / 4 { best } else { before }
}
/// For how long a trace, or a copy of a flow's entry, holds at most, in ticks. For so long a flow's entry may not know of its newest packet.
pub const TRACE_TICKS: u32 = 8;

impl Traces {
    /// Bits of a trace. Zero is none.
    const BITS: u32 = 18;
    const ONE: u64 = (1 << Self::BITS) - 1;
    /// Bits of all traces.
    const ALL: u32 = 3 * Self::BITS;

    /// From its word.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// Its word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// How far a trace has to be moved to be where it is; [`Self::ALL`]: it isn't there.
    #[inline(always)]
    const fn find(self, trace: Trace) -> u32 {
        if self.0 >> Self::ALL != trace.time {
            return Self::ALL;
        }
        self.find_now(trace.number)
    }

    /// The same of a number, whatever time it is.
    #[inline(always)]
    const fn find_now(self, number: u64) -> u32 {
        if self.0 & Self::ONE == number {
            0
        } else if self.0 >> Self::BITS & Self::ONE == number {
            Self::BITS
        } else if self.0 >> (2 * Self::BITS) & Self::ONE == number {
            2 * Self::BITS
        } else {
            Self::ALL
        }
    }

    /// Whether one is there.
    #[inline(always)]
    pub(super) const fn have(self, trace: Trace) -> bool {
        self.find(trace) != Self::ALL
    }

    /// The same with another one. Where there are three already, it takes the place of one.
    #[inline(always)]
    pub(super) const fn with(self, trace: Trace) -> Self {
        let time = trace.time << Self::ALL;
        if self.0 >> Self::ALL != trace.time {
            return Self(time | trace.number);
        }
        if self.have(trace) {
            return self;
        }
        let mut shift = self.find_now(0);
        if shift == Self::ALL {
            // The others keep theirs also where four take turns.
            shift = match trace.number & 3 {
                0 => 0,
                1 => Self::BITS,
                _ => 2 * Self::BITS,
            };
        }
        Self((self.0 & !(Self::ONE << shift)) | (trace.number << shift))
    }

    /// The same without one.
    #[inline(always)]
    const fn without(self, trace: Trace) -> Self {
        let shift = self.find(trace);
        if shift == Self::ALL { self } else { Self(self.0 & !(Self::ONE << shift)) }
    }
}

/// What a flow leaves in [`Traces`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Zeroable)]
#[repr(C)]
pub(super) struct Trace {
    /// Its number.
    number: u64,
    /// The time's number.
    time: u64,
    /// Where it stands.
    pub(super) place: u32,
    reserved: u32,
}

impl Trace {
    /// That of a flow at a moment.
    #[inline(always)]
    pub(super) fn new<A: Address>(key: &FlowKey<A>, settings: &Settings, now: Moment) -> Self {
        let flow = hash::keyed(key, settings.secret);
        let place = (flow >> 32) as u32 & settings.trace_mask;
        // Not all at the same moment.
        let time = now.tick().number().wrapping_add(place) / TRACE_TICKS;
        let salt = u64::from(time).wrapping_mul(OTHER_MULTIPLIER);
        let number = (flow ^ salt).wrapping_mul(MULTIPLIER) >> (64 - Traces::BITS);
        Self {
            number: if number == 0 { 1 } else { number },
            time: u64::from(time) & (u64::MAX >> Traces::ALL),
            place,
            reserved: 0,
        }
    }
}

/// Odd numbers with about as many ones as zeros.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
const OTHER_MULTIPLIER: u64 = 0xd6e8_feb8_6659_fd93;

/// Takes a trace away, if it is there.
#[inline(always)]
pub(super) fn erase<T: Tables>(tables: &T, trace: Trace) {
    let traces = tables.traces(trace.place);
    let without = traces.without(trace);
    if without != traces {
        tables.set_traces(trace.place, without);
    }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;
    use crate::wire::{Ipv4Address, NetworkU16, PROTOCOL_TCP};

    fn trace(number: u32, tick: u64) -> Trace {
        let key = FlowKey {
            source: Ipv4Address::from(Ipv4Addr::from(0x0a00_0000 + (number >> 8))),
            destination: Ipv4Address::from(Ipv4Addr::new(192, 0, 2, 2)),
            source_port: NetworkU16::new(1000 + (number & 0xff) as u16),
            destination_port: NetworkU16::new(443),
            protocol: PROTOCOL_TCP.into(),
        };
        let now = Moment::from_nanoseconds(tick << 30);
        let settings = Settings {
            secret: 0x0123_4567_89ab_cdef,
            trace_mask: TRACES - 1,
            ..Settings::default()
        };
        Trace::new(&key, &settings, now)
    }

    #[test]
    fn a_trace_holds_for_its_time_and_is_another_number_then() {
        let mut changes = 0;
        for tick in 100..200 {
            let (now, next) = (trace(1, tick), trace(1, tick + 1));
            assert_eq!(now.place, next.place);
            let traces = Traces::default().with(now);
            assert!(traces.have(now));
            assert_eq!(traces.have(next), now == next);
            // What is left of the time before goes with the first of the next.
            assert!(now == next || traces.with(next) == Traces::default().with(next));
            assert_eq!(now.number == next.number, now == next);
            changes += u64::from(now != next);
        }
        assert!((100 / u64::from(TRACE_TICKS)).abs_diff(changes) <= 1, "{changes}");
    }

    #[test]
    fn places_change_their_time_one_after_the_other() {
        let changing = (0..1000).filter(|flow| trace(*flow, 100) != trace(*flow, 101)).count();
        let share = 1000 / TRACE_TICKS as usize;
        assert!((share / 2..share * 2).contains(&changing), "{changing}");
    }

    #[test]
    fn there_are_as_many_places_as_flows_within_bounds() {
        for (flows, before, places) in [
            (0, 0, 1 << 12),
            (4097, 1 << 12, 1 << 13),
            (65_536, 1 << 12, 1 << 16),
            (60_000, 1 << 16, 1 << 16),
            (16_384, 1 << 16, 1 << 16),
            (8192, 1 << 16, 1 << 13),
            (u32::MAX, 1 << 16, TRACES),
            (400_000, TRACES, TRACES),
        ] {
            assert_eq!(trace_places(flows, before), places, "{flows}, {before}");
        }
    }

    #[test]
    fn three_stand_at_a_place_and_one_goes_without_the_others() {
        let at = |number| Trace { number, time: 7, place: 0, reserved: 0 };
        let mut traces = Traces::default();
        for number in [5, 6, 7] {
            traces = traces.with(at(number));
        }
        assert!([5, 6, 7].iter().all(|number| traces.have(at(*number))));
        assert!(!traces.have(at(8)) && !traces.have(Trace { time: 8, ..at(5) }));
        let fewer = traces.without(at(6));
        assert_eq!([5, 6, 7].map(|number| fewer.have(at(number))), [true, false, true]);
        assert_eq!(fewer.with(at(6)), traces);
        assert_eq!(traces.without(at(8)), traces);
        for number in 8..16 {
            let more = traces.with(at(number));
            assert!(more.have(at(number)));
            assert_eq!([5, 6, 7].iter().filter(|number| more.have(at(**number))).count(), 2);
        }
    }

    #[test]
    fn hardly_a_flow_is_taken_for_another_however_many_there_are() {
        let mut places = std::collections::HashMap::<u32, Traces>::new();
        let (mut wrong, mut lost) = (0, 0);
        let flows = 1 << 20;
        for number in 0..flows {
            let trace = trace(number, 100);
            let traces = places.entry(trace.place).or_default();
            wrong += u32::from(traces.have(trace));
            *traces = traces.with(trace);
        }
        // Three in 2^18 at most.
        assert!(wrong < 24, "{wrong}");
        for number in 0..flows {
            let trace = trace(number, 100);
            lost += u32::from(!places[&trace.place].have(trace));
        }
        assert!(lost < flows / 8, "{lost}: there is no room for so many");
    }
}
