//! Which backend a new connection goes to.

use bytemuck::Zeroable;

use super::{Family, FamilyTables, Reason, hash};
use crate::{
    abi::{
        ClientKey, FlowKey, Moment, NO_BACKEND, Refusal, Service, Settings, Stamp, service_options,
    },
    datapath::tables::Tables,
    wire::Address,
};

/// How often it was tried to open a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Zeroable)]
#[repr(C)]
pub(super) struct Attempt {
    /// Backends that were tried before.
    pub(super) tries: u32,
    /// The last one of them; [`NO_BACKEND`]: none was.
    pub(super) avoided: u32,
}

impl Attempt {
    /// None yet.
    pub(super) const FIRST: Self = Self { tries: 0, avoided: NO_BACKEND };

    /// The one after this, since `backend` didn't take the connection.
    #[inline(always)]
    pub(super) const fn after(tries: u8, backend: u32) -> Self {
        Self { tries: tries as u32 + 1, avoided: backend }
    }
}

/// For how long new connections spare a backend that refused one, in units of a [`Stamp`]: about three seconds,
/// longer than a client takes to send its SYN again.
const SPARED: u32 = (3_000_000_000 / Stamp::NANOSECONDS) as u32;
/// For how long connections that were refused by others don't try it: about ten.
const DISTRUSTED: u32 = (10_000_000_000 / Stamp::NANOSECONDS) as u32;
/// Other slots of the ring that are looked at: backends stand there as often as their weights say.
const MOST_OTHERS: u32 = 8;
/// So many of its backends are looked at after that, one after the other.
const MOST_MEMBERS: u32 = 16;
/// The golden ratio spreads those over the ring.
const STRIDE: u32 = 0x9e37_79b9;

/// So many of a service's backends are compared by their connections; of more, as many that are chosen at random.
const MOST_COMPARED: u32 = 32;

/// The backend for a connection of the client's: the one that it keeps, or whose turn it is, or that has the fewest
/// connections, or else the ring's.
#[inline(always)]
pub(super) fn choose<A: Family, T: FamilyTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    service: &Service,
    settings: &Settings,
    attempt: Attempt,
) -> Result<u32, Reason> {
    let now = tables.now();
    if service.affinity != 0
        && let Some(backend) = kept(tables, key, service, now)
        && backend != attempt.avoided
        && !has_refused(tables, backend, now, SPARED)
    {
        return Ok(backend);
    }
    if attempt.avoided == NO_BACKEND && service.ring.size() != 0 {
        let chosen = if service.options & service_options::IN_TURN != 0 {
            next(tables, service)?
        } else if service.options & service_options::LEAST != 0 {
            least(tables, key, service, settings)?
        } else if service.most_load != 0 {
            bounded(tables, key, service, settings)?
        } else {
            NO_BACKEND
        };
        if chosen != NO_BACKEND && !has_refused(tables, chosen, now, SPARED) {
            return Ok(chosen);
        }
    }
    pick(tables, key, service, settings, attempt)
}

/// The backend whose turn it is.
#[inline(always)]
fn next<T: Tables>(tables: &T, service: &Service) -> Result<u32, Reason> {
    let turn = tables.take_turn(service.index) as u32;
    let position = turn.checked_rem(service.ring.size()).ok_or(Reason::NoBackend)?;
    named(tables, service.ring.offset().wrapping_add(position))
}

/// The backend that has the fewest connections for its weight, with the one that is to come. Of those that have equally few,
/// it is the first from some place on, which the connection decides.
#[inline(always)]
fn least<A: Family, T: FamilyTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    service: &Service,
    settings: &Settings,
) -> Result<u32, Reason> {
    let members = service.ring.members();
    let count = tables.ring_slot(members).ok_or(Reason::TablesIncomplete)?;
    let hash = hash::flow(key, settings.hash_seed);
    let start = ((u64::from(hash) * u64::from(count)) >> 32) as u32;
    let mut best = NO_BACKEND;
    let (mut best_load, mut best_weight) = (u64::MAX, 1);
    for number in 0..MOST_COMPARED {
        if number >= count {
            break;
        }
        let position = start + number;
        let position = if position < count { position } else { position - count };
        let index = named(tables, members + 1 + position)?;
        let weight = tables.backend(index).map_or(0, |backend| u32::from(backend.weight));
        let load = tables.load(index).max(0) as u64 + 1;
        // As fractions: load / weight < best_load / best_weight.
        if weight != 0
            && (best == NO_BACKEND || load * u64::from(best_weight) < best_load * u64::from(weight))
        {
            best = index;
            best_load = load;
            best_weight = weight;
        }
    }
    Ok(best)
}

/// The first backend that the ring leads to from the connection's slot on, as often as slots are looked at, that may have
/// another connection (Mirrokni et al., "Consistent Hashing with Bounded Loads", 2017). [`NO_BACKEND`]: none was found.
#[inline(always)]
fn bounded<A: Family, T: FamilyTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    service: &Service,
    settings: &Settings,
) -> Result<u32, Reason> {
    let hash = hash_of(key, service, settings);
    for number in 0..MOST_COMPARED {
        let index = slot(tables, service, hash.wrapping_add(number.wrapping_mul(STRIDE)))?;
        if !is_overloaded(tables, service, index) {
            return Ok(index);
        }
    }
    Ok(NO_BACKEND)
}

/// What decides about a connection's place in the ring.
#[inline(always)]
pub(super) fn hash_of<A: Address>(key: &FlowKey<A>, service: &Service, settings: &Settings) -> u32 {
    if service.affinity == 0 && service.options & service_options::SOURCE == 0 {
        hash::flow(key, settings.hash_seed)
    } else {
        hash::client(key, settings.hash_seed)
    }
}

/// Whether a backend has more connections than its service allows, with the one that is to come.
#[inline(always)]
fn is_overloaded<T: Tables>(tables: &T, service: &Service, index: u32) -> bool {
    let weight = tables.backend(index).map_or(0, |backend| u32::from(backend.weight));
    let load = tables.load(index).max(0) as u64;
    let all = tables.service_load(service.index).max(0) as u64 + 1;
    let share = all * u64::from(weight) * u64::from(service.most_load);
    // Rounded up, so that somebody takes the last one.
    load * u64::from(service.weights) * 100 >= share
}

/// The backend that the client had, if it has had a connection lately, and the backend takes another.
#[inline(always)]
fn kept<A: Family, T: FamilyTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    service: &Service,
    now: Moment,
) -> Option<u32> {
    let client = tables.client(&ClientKey { service: service.index, address: key.source })?;
    let takes = tables.backend(client.backend)?.takes_new_flows != 0;
    (takes && now.tick().since(client.last_seen) <= service.affinity).then_some(client.backend)
}

/// The backend that the ring leads to, unless that was tried, or has just refused others.
#[inline(always)]
pub(super) fn pick<A: Family, T: FamilyTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    service: &Service,
    settings: &Settings,
    attempt: Attempt,
) -> Result<u32, Reason> {
    if service.ring.size() == 0 {
        let is_silent = service.options & service_options::SILENT != 0;
        return Err(if is_silent { Reason::AllDown } else { Reason::NoBackend });
    }
    let now = tables.now();
    let hash = hash_of(key, service, settings);
    let first = slot(tables, service, hash)?;
    let is_first = attempt.avoided == NO_BACKEND;
    if is_first && !has_refused(tables, first, now, SPARED) {
        return Ok(first);
    }
    let members = service.ring.members();
    let count = tables.ring_slot(members).ok_or(Reason::TablesIncomplete)?;
    let start = ((u64::from(hash) * u64::from(count)) >> 32) as u32;
    let mut last = first;
    for number in 0..MOST_OTHERS + MOST_MEMBERS {
        let other = if number < MOST_OTHERS {
            slot(tables, service, hash.wrapping_add((number + 1).wrapping_mul(STRIDE)))?
        } else {
            let position = start + number - MOST_OTHERS;
            if number - MOST_OTHERS >= count {
                break;
            }
            let position = if position < count { position } else { position - count };
            named(tables, members + 1 + position)?
        };
        if other == attempt.avoided {
            continue;
        }
        if !has_refused(tables, other, now, DISTRUSTED) {
            return Ok(other);
        }
        last = other;
    }
    Ok(if is_first { first } else { last })
}

/// Whether a connection that `backend` refused has somewhere else to go.
#[inline(always)]
pub(super) fn is_elsewhere<T: Tables>(tables: &T, picked: u32, attempt: Attempt) -> bool {
    picked != attempt.avoided && !has_refused(tables, picked, tables.now(), DISTRUSTED)
}

/// Whether new connections spare a backend, since it has refused one.
#[inline(always)]
pub(super) fn is_spared<T: Tables>(tables: &T, backend: u32) -> bool {
    has_refused(tables, backend, tables.now(), SPARED)
}

/// Whether a backend has refused a connection, and taken none since, within so many units of a [`Stamp`].
#[inline(always)]
fn has_refused<T: Tables>(tables: &T, backend: u32, now: Moment, within: u32) -> bool {
    tables.refusal(backend).is_within(now, within)
}

/// Notes that a backend has refused a connection.
#[inline(always)]
pub(super) fn note_refusal<T: Tables>(tables: &T, backend: u32) {
    tables.set_refusal(backend, Refusal::at(tables.now()));
}

/// Notes that a backend has taken a connection.
#[inline(always)]
pub(super) fn note_answer<T: Tables>(tables: &T, backend: u32) {
    if !tables.refusal(backend).is_over() {
        tables.set_refusal(backend, Refusal::default());
    }
}

#[inline(always)]
fn slot<T: Tables>(tables: &T, service: &Service, hash: u32) -> Result<u32, Reason> {
    named(tables, service.ring.slot(hash))
}

/// The backend that stands in a slot of the map of all rings.
#[inline(always)]
fn named<T: Tables>(tables: &T, slot: u32) -> Result<u32, Reason> {
    match tables.ring_slot(slot).unwrap_or(NO_BACKEND) {
        NO_BACKEND => Err(Reason::TablesIncomplete),
        index => Ok(index),
    }
}
