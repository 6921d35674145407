//! Traces of flows whose replies pass through us: by one, a steady packet to its backend needs a part of one line of memory.
//!
//! Such a trace is one of [`super::traces`], of which [`Rest`] is the other half: where the flow is sent from. The trace's own bits
//! also depend on that, and on where the client is, so that who finds both halves has found those of one flow, whoever writes
//! there at the same time. Addresses and ports that its backend and full NAT's addresses have themselves aren't in it: who
//! leaves a trace looks whether it says what the flow's entry does, after it is there. Whatever changes them later erases all
//! traces.

use super::{
    Family, FamilyTables, TRACE_WAYS, Table, Tables, TraceSet, hash,
    lasting::may_have_trace,
    parse::Segment,
    reply_traces, rewrite,
    trace_places::TracePlace,
    traces::{Home, KEY_BITS, OWN_BITS, TIME_SHIFT, Trace},
};
use crate::{
    abi::{Backend, Beat, Direction, Flow, FlowKey, Link, Settings},
    wire::NetworkU16,
};

/// A set of such traces, a line of a processor's cache: first the one half of each, then the other.
pub type NatTraceSet = [TraceSet; 2];

/// Where a flow's packets to the backend are sent from, as half a trace: what full NAT adds to TCP's timestamps, the port, and the
/// address by its index.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Rest(u64);

impl Rest {
    #[inline(always)]
    fn of<A: Family>(flow: &Flow<A>) -> Self {
        let port = u64::from(flow.source_port.raw());
        Self(u64::from(flow.timestamp_shift()) << 32 | port << 16 | u64::from(flow.nat_source))
    }

    #[inline(always)]
    const fn number(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline(always)]
    fn port(self) -> NetworkU16 {
        bytemuck::cast((self.0 >> 16) as u16)
    }

    #[inline(always)]
    const fn nat_source(self) -> u32 {
        self.0 as u32 & 0xffff
    }
}

/// Bits that tell, without the other half, whether a trace is that of a key and holds.
const APART: u64 = u64::MAX << TIME_SHIFT & !BOUND_BITS;
/// Bits that also depend on the other half.
pub(super) const BOUND_BITS: u64 = OWN_BITS & !KEY_BITS;

/// The trace that a segment's flow has, if it has one, but for the bits that also depend on the other half.
#[inline(always)]
pub(super) fn link_trace<A: Family>(segment: &Segment<A>, settings: &Settings, now: Beat) -> Trace {
    let hash = hash::keyed(&segment.key, settings.secret);
    let place = TracePlace::of_hash(hash, settings.nat_trace_mask);
    let reply_set = reply_traces::set_of_hash::<A>(hash, settings);
    Trace { reply_set, ..Trace::at(place, hash ^ number_of(&segment.link), now) }
}

/// A word of a set, and where it stands. As many as there are ways: there is none.
pub(super) struct Found {
    pub(super) way: usize,
    pub(super) word: u64,
}

impl Trace {
    /// Which of a set's may be this one, as far as can be told without the other half. Of two that seem to be, one isn't found.
    #[inline(always)]
    pub(super) fn find_apart<const WAYS: usize>(&self, words: [u64; WAYS]) -> Found {
        let mut found = Found { way: WAYS, word: 0 };
        for (way, word) in (0..).zip(words) {
            if (word ^ self.upper) & APART == 0 {
                found = Found { way, word };
            }
        }
        found
    }
}

/// What the trace's own bits become with its other half.
#[inline(always)]
const fn bound(trace: &Trace, rest: Rest) -> u64 {
    trace.upper ^ (hash::mix_half(rest.0) >> 16 & BOUND_BITS)
}

/// Makes `flow` what the trace of a segment's flow says, if there is one, and returns its backend.
#[inline(always)]
pub(super) fn find<'t, A: Family, T: FamilyTables<A>>(
    tables: &'t T,
    segment: &Segment<A>,
    trace: &Trace,
    flow: &mut Flow<A>,
) -> Option<&'t Backend> {
    let Found { way, word } = trace.find_apart(tables.nat_traces(trace.set));
    if way == TRACE_WAYS {
        return None;
    }
    let rest = Rest(tables.nat_rest(trace.set, way));
    if (word ^ bound(trace, rest)) >> TIME_SHIFT != 0 {
        return None;
    }
    let home = Home::of_word(word, false);
    let backend = tables.backend(home.backend)?;
    flow.forwarding = home.forwarding;
    (flow.backend, flow.service) = (home.backend, backend.service);
    flow.direction = Direction::ToBackend as u8;
    flow.source = source(tables, &segment.key, flow, rest)?;
    flow.destination = A::from_words(backend.address);
    (flow.source_port, flow.destination_port) = (rest.port(), backend.port);
    flow.number = rest.number();
    rewrite::prepare(flow, &segment.key);
    Some(backend)
}

/// The address that a flow is sent from.
#[inline(always)]
fn source<A: Family, T: Tables>(
    tables: &T,
    key: &FlowKey<A>,
    flow: &Flow<A>,
    rest: Rest,
) -> Option<A> {
    if !flow.forwarding.hides_client() {
        return Some(key.source);
    }
    tables.nat_source(rest.nat_source()).map(|words| A::from_words(*words))
}

/// Leaves the trace of a flow that was looked up, with its backend, if there is room and it would say what is so.
#[inline(always)]
pub(super) fn leave<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    settings: &Settings,
    now: Beat,
    (flow, backend): (&Flow<A>, &Backend),
) {
    let home = Home { backend: flow.backend, forwarding: flow.forwarding };
    let rest = Rest::of(flow);
    let mut trace = link_trace(segment, settings, now);
    trace.upper = bound(&trace, rest);
    let way = trace.way(tables.nat_traces(trace.set));
    if way == TRACE_WAYS || !home.has_room() {
        return;
    }
    // Others may find it before its entry is looked at once more.
    if !is_as_configured(tables, &segment.key, flow, backend) {
        return;
    }
    tables.set_nat_trace(trace.set, way, trace.word(home), rest.0);
    if !says_what_is_so(tables, segment, home, rest) {
        tables.set_nat_trace(trace.set, way, 0, 0);
    }
}

/// Whether a flow's backend and full NAT's addresses are what its entry says: a trace names them by their numbers.
#[inline(always)]
fn is_as_configured<A: Family, T: Tables>(
    tables: &T,
    key: &FlowKey<A>,
    flow: &Flow<A>,
    backend: &Backend,
) -> bool {
    let Some(source) = source(tables, key, flow, Rest::of(flow)) else { return false };
    flow.service == backend.service
        && (flow.source == source) & (flow.destination == A::from_words(backend.address))
        && flow.destination_port == backend.port
}

/// Whether the flow's entry, its backend and full NAT's addresses are what a trace says.
#[inline(always)]
fn says_what_is_so<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    home: Home,
    rest: Rest,
) -> bool {
    let (Some(entry), Some(backend)) =
        (tables.find(Table::Established, &segment.key), tables.backend(home.backend))
    else {
        return false;
    };
    let entry = &entry.read();
    may_have_trace(entry, tables.now().tick())
        && Rest::of(entry) == rest
        && (entry.backend == home.backend) & (entry.forwarding == home.forwarding)
        && is_as_configured(tables, &segment.key, entry, backend)
        && segment.link.same(entry.link)
}

/// Erases the traces of a flow whose entry has changed, or was removed, by whatever stations its frames came.
#[inline(always)]
pub(super) fn erase<A: Family, T: Tables>(tables: &T, key: &FlowKey<A>, settings: &Settings) {
    let place = TracePlace::of_nat(key, settings);
    // What was left before is seen, and what comes after it finds the entry changed.
    for (way, word) in (0..).zip(tables.confirmed_nat_traces(place.set)) {
        if place.has(word) {
            tables.set_nat_trace(place.set, way, 0, 0);
        }
    }
}

/// A number of both stations of a link.
#[inline(always)]
fn number_of(link: &Link) -> u64 {
    let [interface, first, second, third, vlans]: [u32; 5] = bytemuck::cast(*link);
    let stations = hash::mix_half(u64::from(second) << 32 | u64::from(first));
    hash::mix_half(stations ^ (u64::from(vlans) << 32 | u64::from(third))) ^ u64::from(interface)
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;
    use crate::wire::Ipv4Address;

    fn trace_of(link: Link) -> Trace {
        let mut segment: Segment<Ipv4Address> = Zeroable::zeroed();
        segment.link = link;
        let settings = Settings { secret: 7, nat_trace_mask: 0xfff, ..Settings::default() };
        link_trace(&segment, &settings, Beat::default())
    }

    #[test]
    fn a_traces_own_bits_depend_on_every_bit_of_the_link() {
        let known = trace_of(Link::default());
        for bit in 0..size_of::<Link>() * 8 {
            let mut link = Link::default();
            bytemuck::bytes_of_mut(&mut link)[bit / 8] ^= 1 << (bit % 8);
            let other = trace_of(link);
            assert_eq!(other.set, known.set);
            assert_eq!((other.upper ^ known.upper) & !BOUND_BITS, 0, "bit {bit}");
            assert_ne!(other.upper, known.upper, "bit {bit}");
        }
    }

    #[test]
    fn a_traces_own_bits_depend_on_every_bit_of_its_other_half() {
        let trace = trace_of(Link::default());
        let known = bound(&trace, Rest(0));
        for bit in 0..64 {
            let other = bound(&trace, Rest(1 << bit));
            assert_eq!((other ^ known) & !BOUND_BITS, 0, "bit {bit}");
            assert_ne!(other, known, "bit {bit}");
        }
    }
}
