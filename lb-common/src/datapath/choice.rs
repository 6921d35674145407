//! Which backend a new connection goes to.

use bytemuck::Zeroable;

use super::{Family, FamilyTables, Reason, hash};
use crate::{
    abi::{
        ClientKey, FlowKey, Moment, NO_BACKEND, Refusal, Service, Settings, Stamp, service_options,
    },
    datapath::tables::Tables,
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

/// The backend for a connection of the client's: the one that it keeps, or the ring's.
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
    pick(tables, key, service, settings, attempt)
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
    let by_flow = service.affinity == 0 && service.options & service_options::SOURCE == 0;
    let hash = if by_flow {
        hash::flow(key, settings.hash_seed)
    } else {
        hash::client(key, settings.hash_seed)
    };
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
    match tables.ring_slot(slot) {
        None | Some(NO_BACKEND) => Err(Reason::TablesIncomplete),
        Some(index) => Ok(index),
    }
}
