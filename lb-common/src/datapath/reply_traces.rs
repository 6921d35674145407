//! Traces of replies that pass through us: by one, a steady packet to its client needs a line of memory.
//!
//! Such a trace is one of [`super::nat_traces`] with another [`ReplyRest`]: what the reply becomes, and the station that the client is
//! behind. Of our own station on that link it says the place among [`crate::abi::STATIONS`], where the rest of it is looked up; where
//! another comes to stand there, the controller erases all traces.

use bytemuck::Zeroable;

use super::{
    Family, FamilyTables, Table, hash, lasting,
    nat_traces::{BOUND_BITS, Found, link_trace},
    parse::Segment,
    rewrite,
    trace_places::{TracePlace, beside},
    traces::{Home, OWN_BITS, TIME_SHIFT, Trace},
};
use crate::{
    abi::{Beat, Direction, Flow, FlowKey, Link, LocalMac, Settings, Station},
    wire::{Address, MacAddress, NetworkU16},
};

/// Traces of replies that stand together.
pub const REPLY_WAYS: usize = 2;

/// The first halves of those in a set; zero is none.
pub type ReplyTraces = [u64; REPLY_WAYS];

/// A set of such traces, a line of a processor's cache over IPv4: first the one half of each, then the other.
#[derive(Clone, Copy, Zeroable)]
#[repr(C)]
pub struct ReplySet<A> {
    /// The first halves.
    pub traces: ReplyTraces,
    /// The other ones.
    pub rests: [ReplyRest<A>; REPLY_WAYS],
}

/// The other half of a trace of replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Zeroable)]
#[repr(C)]
pub struct ReplyRest<A> {
    client: A,
    service: A,
    /// What full NAT adds to TCP's timestamps, and the client's and the service's port.
    numbers: u64,
    /// The hardware address that the client is behind, the place of ours, and the end of a digest.
    station: u64,
}

/// Bits of [`ReplyRest::station`] that are of a digest.
const DIGEST: u64 = 0xff;

/// Number of sets that there are of the family's: enough for the traces of as many flows.
#[inline(always)]
pub const fn reply_sets<A: Address>() -> u32 {
    if A::WORDS == 1 { 1 << 17 } else { 1 << 16 }
}

/// The set that a key of a hash has: of twice as many as there are of requests, if there are so many.
#[inline(always)]
pub(super) const fn set_of_hash<A: Address>(hash: u64, settings: &Settings) -> u32 {
    let mask = (settings.nat_trace_mask << 1 | 1) % reply_sets::<A>();
    (hash >> 32) as u32 & mask
}

impl TracePlace {
    /// That of replies with a key.
    #[inline(always)]
    pub fn of_reply<A: Address>(key: &FlowKey<A>, settings: &Settings) -> Self {
        let hash = hash::keyed(key, settings.secret);
        Self { set: set_of_hash::<A>(hash, settings), ..Self::of_hash(hash, 0) }
    }
}

impl<A: Family> ReplyRest<A> {
    /// That of an entry.
    #[inline(always)]
    fn of(flow: &Flow<A>, own: &LocalMac) -> Self {
        let ports =
            u64::from(flow.destination_port.raw()) << 16 | u64::from(flow.source_port.raw());
        let station = flow.link.station.number() << 16;
        Self {
            client: flow.destination,
            service: flow.source,
            numbers: u64::from(flow.timestamp_shift()) << 32 | ports,
            station: station | u64::from(own.place()) << 8,
        }
    }

    /// A number of all that it says, and of the trace that it belongs to.
    #[inline(always)]
    fn digest(&self, trace: &Trace) -> u64 {
        let (client, service) = (self.client.words(), self.service.words());
        let mut digest = trace.upper & OWN_BITS;
        for word in 0..A::WORDS {
            let pair = u64::from(client[word].raw()) << 32 | u64::from(service[word].raw());
            digest = hash::mix_half(digest ^ pair);
        }
        hash::mix_half(hash::mix_half(digest ^ self.numbers) ^ (self.station & !DIGEST))
    }

    /// The place of our own station.
    #[inline(always)]
    const fn place(&self) -> u32 {
        (self.station >> 8) as u32 & 0xff
    }

    #[inline(always)]
    fn port(&self, number: u32) -> NetworkU16 {
        bytemuck::cast((self.numbers >> (16 * number)) as u16)
    }
}

/// What a trace's own bits become with a digest.
#[inline(always)]
const fn bound(trace: &Trace, digest: u64) -> u64 {
    trace.upper ^ (digest >> 16 & BOUND_BITS)
}

/// Makes `flow` what the trace of a reply's flow says, if there is one.
#[inline(always)]
pub(super) fn find<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    trace: &Trace,
    flow: &mut Flow<A>,
) -> Option<()> {
    let mut set = trace.reply_set;
    let Found { mut way, mut word } = trace.find_apart(tables.reply_traces(set));
    if way == REPLY_WAYS {
        set = beside(set);
        Found { way, word } = trace.find_apart(tables.reply_traces(set));
        if way == REPLY_WAYS {
            return None;
        }
    }
    let rest = tables.reply_rest(set, way);
    let digest = rest.digest(trace);
    if (word ^ bound(trace, digest)) >> TIME_SHIFT != 0 || (rest.station ^ digest) & DIGEST != 0 {
        return None;
    }
    let home = Home::of_word(word, false);
    let backend = tables.backend(home.backend)?;
    let Station { mac, maximum_datagram, .. } = tables.station(rest.place())?;
    flow.forwarding = home.forwarding;
    (flow.backend, flow.service) = (home.backend, backend.service);
    flow.direction = Direction::ToClient as u8;
    (flow.source, flow.destination) = (rest.service, rest.client);
    (flow.source_port, flow.destination_port) = (rest.port(0), rest.port(1));
    flow.number = (rest.numbers >> 32) as u32;
    flow.link = Link {
        interface: mac.interface,
        own: mac.address,
        station: MacAddress::of_number(rest.station >> 16),
        vlans: mac.vlans,
    };
    flow.maximum_datagram = *maximum_datagram as u16;
    rewrite::prepare(flow, &segment.key);
    // Nobody stands there.
    (mac.interface != 0).then_some(())
}

/// Leaves the trace of a reply's flow that was looked up, if there is room and it would say what is so.
#[inline(always)]
pub(super) fn leave<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    settings: &Settings,
    now: Beat,
    flow: &Flow<A>,
) {
    let home = Home { backend: flow.backend, forwarding: flow.forwarding };
    let own = flow.link.local_mac();
    if !tables.is_station(&own) {
        return;
    }
    let mut rest = ReplyRest::of(flow, &own);
    let mut trace = link_trace(segment, settings, now);
    let digest = rest.digest(&trace);
    trace.upper = bound(&trace, digest);
    let mut set = trace.reply_set;
    let mut way = trace.way(tables.reply_traces(set));
    if way == REPLY_WAYS {
        set = beside(set);
        way = trace.way(tables.reply_traces(set));
    }
    if way == REPLY_WAYS || !home.has_room() {
        return;
    }
    rest.station |= digest & DIGEST;
    tables.set_reply_trace(set, way, trace.word(home), &rest);
    rest.station &= !DIGEST;
    if !says_what_is_so(tables, segment, home, &rest) {
        tables.erase_reply_trace(set, way);
    }
}

/// Whether the flow's entry, its backend and our own station are what a trace says.
#[inline(always)]
fn says_what_is_so<A: Family, T: FamilyTables<A>>(
    tables: &T,
    segment: &Segment<A>,
    home: Home,
    rest: &ReplyRest<A>,
) -> bool {
    let (Some(entry), Some(backend), Some(station)) = (
        tables.find(Table::Established, &segment.key),
        tables.backend(home.backend),
        tables.station(rest.place()),
    ) else {
        return false;
    };
    let entry = &entry.read();
    let own = entry.link.local_mac();
    lasting::may_have_trace(entry, tables.now().tick())
        && ReplyRest::of(entry, &own) == *rest
        && (entry.backend == home.backend) & (entry.forwarding == home.forwarding)
        && entry.service == backend.service
        && station.mac.same(&own)
        && (entry.forwarding.hides_client() || tables.local_mac(&segment.station()).is_some())
}

/// Erases the traces of replies of a flow whose entry has changed, or was removed, by whatever stations they came.
#[inline(always)]
pub(super) fn erase<A: Family, T: FamilyTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    settings: &Settings,
) {
    let place = TracePlace::of_reply(key, settings);
    // What was left before is seen, and what comes after it finds the entry changed.
    tables.erase_reply_traces(place);
    tables.erase_reply_traces(place.beside());
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::wire::{Ipv4Address, Ipv6Address};

    /// Demands that a digest depends on every bit of what a trace's other half says, but for those that are a digest's.
    fn demand_all_bits<A: Family>()
    where
        ReplyRest<A>: Copy,
    {
        let zero: ReplyRest<A> = Zeroable::zeroed();
        let trace = Trace { upper: 0x0123_4567_89ab_cdef, set: 0, reply_set: 0 };
        let known = zero.digest(&trace);
        let mut other_trace = trace;
        other_trace.upper ^= 1 << 63;
        assert_ne!(zero.digest(&other_trace), known);
        for bit in 0..size_of::<ReplyRest<A>>() * 8 {
            let mut other = zero;
            // SAFETY: a byte of it, which is of numbers alone.
            unsafe { *(&raw mut other).cast::<u8>().add(bit / 8) ^= 1 << (bit % 8) };
            let is_digest = other.station & DIGEST != 0;
            let (digest, is_same) = (other.digest(&trace), other.digest(&trace) == known);
            assert_eq!(is_same, is_digest, "bit {bit}");
            let kept = BOUND_BITS << 16 | DIGEST;
            assert_eq!((digest ^ known) & kept == 0, is_digest, "bit {bit}");
        }
    }

    #[test]
    fn a_digest_depends_on_every_bit() {
        demand_all_bits::<Ipv4Address>();
        demand_all_bits::<Ipv6Address>();
    }

    #[test]
    fn sets_over_ipv4_are_lines() {
        assert_eq!(size_of::<ReplySet<Ipv4Address>>(), 64);
        assert_eq!(size_of::<ReplySet<Ipv6Address>>(), 112);
    }

    #[test]
    fn keys_spread_over_all_sets() {
        let settings = Settings { secret: 7, nat_trace_mask: (1 << 18) - 1, ..Settings::default() };
        let mut sets = HashSet::new();
        for port in 0..50_000_u16 {
            let mut key: FlowKey<Ipv4Address> = Zeroable::zeroed();
            key.source_port = NetworkU16::new(port);
            sets.insert(TracePlace::of_reply(&key, &settings).set);
        }
        // By chance alone, 41,570 of them are different.
        assert!((41_100..42_000).contains(&sets.len()), "{}", sets.len());
        assert!(sets.iter().all(|set| *set < reply_sets::<Ipv4Address>()));
    }
}
