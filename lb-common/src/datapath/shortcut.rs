//! By direct return: the way past the table of flows.
//!
//! Nearly every flow is at the backend that its ring's slot leads to. Where a slot is settled, all of them are: then its
//! packets go there without a look at the table, which only has to know them for the day that the slot leads elsewhere.
//! So a flow is looked up once in a while, when no trace of it is found: that records it, if it wasn't, and says that
//! it lives. Traces are bits, of which several flows may have the same; they are forgotten every few seconds, and then stand
//! elsewhere. A flow that shares those of another is looked up a while later. What begins and ends a flow is looked up
//! in any case.

use bytemuck::Zeroable;

use super::{Family, FamilyTables, choice, hash, opening, parse::Segment};
use crate::{
    abi::{
        Direction, Flow, FlowKey, FlowState, Forwarding, LocalMac, Moment, NO_BACKEND, Service,
        Settings,
    },
    wire::{Ipv4Header, TcpFlags},
};

/// One element of the map of traces: bits of flows, and above them the number of the time that they belong to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traces(u64);

/// Number of such elements: 256 KB, which stay in a core's cache. They tell half a million flows apart.
pub const TRACES: u32 = 1 << TRACES_BITS;
const TRACES_BITS: u32 = 15;
/// For how long traces hold, in ticks. For so long a flow's entry may not know of its newest packet, and, where others have
/// left the same, as long again.
pub const TRACE_TICKS: u32 = 4;

impl Traces {
    /// Bits for traces in one of them.
    const BITS: u32 = 56;
    const ALL: u64 = (1 << Self::BITS) - 1;
    /// With more of them set, too many flows would be taken for others.
    const MOST: u32 = Self::BITS / 2;

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

    #[inline(always)]
    const fn have(self, trace: Trace) -> bool {
        self.0 & trace.bits == trace.bits
    }

    #[inline(always)]
    const fn are_of(self, trace: Trace) -> bool {
        (self.0 ^ trace.bits) >> Self::BITS == 0
    }

    /// The same with one more.
    #[inline(always)]
    const fn with(self, trace: Trace) -> Self {
        if !self.are_of(trace) || (self.0 & Self::ALL).count_ones() > Self::MOST {
            return Self(trace.bits);
        }
        Self(self.0 | trace.bits)
    }

    /// The same without one, and without others that it has bits of.
    #[inline(always)]
    const fn without(self, trace: Trace) -> Self {
        Self(self.0 & !(trace.bits & Self::ALL))
    }
}

/// What a flow leaves in [`Traces`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Zeroable)]
#[repr(C)]
pub(super) struct Trace {
    /// With the time's number.
    bits: u64,
    /// Which element they belong to.
    place: u32,
    reserved: u32,
}

impl Trace {
    /// That of a flow at a moment. `hash` is what its place in the ring depends on.
    #[inline(always)]
    fn new<A: Family>(key: &FlowKey<A>, hash: u32, secret: u64, now: Moment) -> Self {
        let time = u64::from(now.tick().number() / TRACE_TICKS);
        let ports =
            (u32::from(key.source_port.raw()) << 16) | u32::from(key.destination_port.raw());
        let flow = (u64::from(hash) << 32) | u64::from(ports);
        let mixed = hash::mix_long(flow ^ secret ^ time.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let first = 1 << position(mixed as u16);
        let second = 1 << position((mixed >> 16) as u16);
        Self {
            bits: (time << Traces::BITS) | first | second,
            place: (mixed >> (64 - TRACES_BITS)) as u32,
            reserved: 0,
        }
    }
}

/// Which bit a number stands for.
#[inline(always)]
const fn position(number: u16) -> u32 {
    (number as u32 * Traces::BITS) >> 16
}

/// Where a packet goes without a look at the table of flows.
#[derive(Clone, Copy, Zeroable)]
#[repr(C)]
pub(super) struct Shortcut {
    trace: Trace,
    /// [`NO_BACKEND`]: its flow is looked up, and leaves no trace.
    backend: u32,
    service: u32,
    forwarding: Forwarding,
    reserved: u32,
}

impl Shortcut {
    /// Becomes that of a segment.
    #[inline(always)]
    pub(super) fn find<A: Family, T: FamilyTables<A>>(
        &mut self,
        tables: &T,
        segment: &Segment<A>,
        settings: &Settings,
    ) {
        self.backend = NO_BACKEND;
        let key = &segment.key;
        if !is_usual(segment) || !tables.is_direct_port(key.destination_port.get()) {
            return;
        }
        let link = &segment.link;
        let station = LocalMac {
            interface: link.interface,
            address: link.own,
            reserved: 0,
            vlans: link.vlans,
        };
        if !tables.is_station(&station) {
            return;
        }
        let Some(service) = opening::service(tables, key) else { return };
        if !service.is_led_by_ring() || service.ring.size() == 0 {
            return;
        }
        let hash = choice::hash_of(key, &service, settings);
        let Some(slot) = tables.ring_slot(service.ring.slot(hash)) else { return };
        if !slot.is_settled() {
            return;
        }
        let Some(backend) = tables.backend(slot.number()) else { return };
        if backend.forwarding.sees_replies() {
            return;
        }
        self.trace = Trace::new(key, hash, settings.secret, tables.now());
        self.service = service.index;
        self.forwarding = backend.forwarding;
        self.backend = slot.number();
    }

    /// Whether it may be taken. Then `flow` becomes what is needed to forward its packets.
    #[inline(always)]
    pub(super) fn take<A: Family, T: FamilyTables<A>>(
        &self,
        tables: &T,
        segment: &Segment<A>,
        flow: &mut Flow<A>,
    ) -> bool {
        if self.backend == NO_BACKEND {
            return false;
        }
        let traces = tables.traces(self.trace.place);
        if !traces.have(self.trace) || !traces.are_of(self.trace) {
            return false;
        }
        flow.source = segment.key.source;
        flow.destination = segment.key.destination;
        flow.network_delta = Ipv4Header::TIME_TO_LIVE_DELTA;
        flow.backend = self.backend;
        flow.service = self.service;
        flow.direction = Direction::ToBackend as u8;
        flow.forwarding = self.forwarding;
        true
    }

    /// Leaves the trace of a flow that was looked up, if it is where its slot leads.
    #[inline(always)]
    pub(super) fn leave_trace<A: Family, T: FamilyTables<A>>(&self, tables: &T, flow: &Flow<A>) {
        if self.backend != NO_BACKEND
            && flow.state == FlowState::ESTABLISHED
            && flow.direction == Direction::ToBackend as u8
            && flow.backend == self.backend
            && flow.service == self.service
            && flow.forwarding == self.forwarding
        {
            let traces = tables.traces(self.trace.place);
            tables.set_traces(self.trace.place, traces.with(self.trace));
        }
    }
}

/// Sees to it that the packets of a flow that begins at `backend` are looked up, by direct return: the next one in any case,
/// since it may be the only one for long, and all of them where its slot leads elsewhere.
#[inline(always)]
pub(super) fn begin<A: Family, T: FamilyTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    service: &Service,
    settings: &Settings,
    backend: u32,
) {
    if !service.is_led_by_ring() || service.ring.size() == 0 {
        return;
    }
    let hash = choice::hash_of(key, service, settings);
    let place = service.ring.slot(hash);
    if tables.ring_slot(place).is_some_and(|slot| slot.number() != backend) {
        tables.unsettle(place);
    }
    let trace = Trace::new(key, hash, settings.secret, tables.now());
    let traces = tables.traces(trace.place);
    if traces.have(trace) {
        tables.set_traces(trace.place, traces.without(trace));
    }
}

/// Whether a segment is one of many: none that a flow begins or ends with.
#[inline(always)]
const fn is_usual<A: Family>(segment: &Segment<A>) -> bool {
    let others = TcpFlags::SYN.union(TcpFlags::FIN).union(TcpFlags::RST);
    segment.is_udp() || (segment.flags.has(TcpFlags::ACK) && !segment.flags.has(others))
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;
    use crate::wire::{Ipv4Address, NetworkU16, PROTOCOL_TCP};

    const SECRET: u64 = 0x0123_4567_89ab_cdef;

    fn trace(port: u16, tick: u64) -> Trace {
        let key = FlowKey {
            source: Ipv4Address::from(Ipv4Addr::new(192, 0, 2, 1)),
            destination: Ipv4Address::from(Ipv4Addr::new(192, 0, 2, 2)),
            source_port: NetworkU16::new(port),
            destination_port: NetworkU16::new(443),
            protocol: PROTOCOL_TCP.into(),
        };
        let now = Moment::from_nanoseconds(tick << 30);
        Trace::new(&key, hash::flow(&key, 0), SECRET, now)
    }

    fn finds(traces: Traces, trace: Trace) -> bool {
        traces.have(trace) && traces.are_of(trace)
    }

    #[test]
    fn a_trace_is_found_until_its_time_is_over_and_stands_elsewhere_then() {
        let ticks = u64::from(TRACE_TICKS);
        let first = trace(1000, 5 * ticks);
        assert!(!finds(Traces::default(), first));
        let traces = Traces::default().with(first);
        for tick in 5 * ticks..6 * ticks {
            assert_eq!(trace(1000, tick), first);
        }
        let later = trace(1000, 6 * ticks);
        assert!(!finds(traces, later));
        assert_ne!(
            (later.place, later.bits & Traces::ALL),
            (first.place, first.bits & Traces::ALL)
        );
        // What is left of the time before goes with the first of the next.
        assert_eq!(traces.with(later), Traces::default().with(later));
        assert!(finds(traces.with(later), later));
    }

    #[test]
    fn what_begins_leaves_no_trace_behind() {
        let trace = trace(1000, 0);
        assert!(!finds(Traces::default().with(trace).without(trace), trace));
    }

    #[test]
    fn few_flows_are_taken_for_others_however_many_there_are() {
        // Half a million, one after the other, of which every place has some.
        let mut all = [Traces::default(); 1 << 10];
        let place = |trace: Trace| trace.place as usize % (1 << 10);
        let mut wrong = 0;
        let flows = 16 << 10;
        for port in 0..flows {
            let trace = trace(port, 0);
            let traces = all[place(trace)];
            wrong += u32::from(finds(traces, trace));
            all[place(trace)] = traces.with(trace);
            assert!(finds(all[place(trace)], trace));
        }
        assert!(wrong < u32::from(flows) / 8, "{wrong} of {flows}");
        // Without an end, they are forgotten rather than all taken for others.
        let mut wrong = 0;
        for port in flows..=u16::MAX {
            let trace = trace(port, 0);
            wrong += u32::from(finds(all[place(trace)], trace));
            all[place(trace)] = all[place(trace)].with(trace);
        }
        assert!(wrong < u32::from(u16::MAX - flows) / 4, "{wrong}");
    }

    #[test]
    fn flows_are_spread_over_all_places() {
        let mut places = [0u16; 64];
        for port in 0..6400 {
            places[(trace(port, 0).place >> (TRACES_BITS - 6)) as usize] += 1;
        }
        assert!(places.iter().all(|flows| (50..200).contains(flows)), "{places:?}");
    }
}
