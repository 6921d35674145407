//! The direction back to the client, where replies pass through us: source ports for full NAT.

use core::num::NonZeroU32;

use super::{Family, FamilyTables, InsertError, Reason, Table, rewrite, tables::forget};
use crate::{
    abi::{Backend, Flow, FlowKey, FlowState, Settings},
    wire::NetworkU16,
};

/// How many ports are tried for a new flow before it is refused.
pub const NAT_TRIES: u32 = 16;

/// Whether a port is one that full NAT sends from.
#[inline(always)]
pub(super) const fn is_ours(settings: &Settings, port: NetworkU16) -> bool {
    (port.get() as u32).wrapping_sub(settings.nat_port_first) < settings.nat_port_count
}

/// Completes `reply`, the direction back to the client, and records it in the table of half-open
/// handshakes under `key`. That is the answer to what the client sends, until full NAT gives it
/// another receiver.
#[inline(always)]
pub(super) fn reserve<A: Family, T: FamilyTables<A>>(
    tables: &T,
    settings: &Settings,
    backend: &Backend,
    key: &mut FlowKey<A>,
    reply: &mut Flow<A>,
) -> Result<(), Reason> {
    if backend.forwarding.hides_client() {
        return reserve_port(tables, settings, backend, key, reply);
    }
    match claim(tables, key, reply, true) {
        Ok(()) => Ok(()),
        Err(Claim::Full) => Err(Reason::FlowTableFull),
        Err(Claim::HalfOpen | Claim::Taken) => Err(Reason::TupleInUse),
    }
}

/// Finds a source address and port that no other flow to this backend uses.
///
/// The search goes round all ports, so that the one that rested longest comes first; further tries
/// are spread over the whole range, since long-lived flows that were opened together lie together.
/// A connection that is closed gives its port away. So does a half-open handshake where nothing
/// better was found: a flood of those must not keep everyone out.
#[inline(always)]
fn reserve_port<A: Family, T: FamilyTables<A>>(
    tables: &T,
    settings: &Settings,
    backend: &Backend,
    key: &mut FlowKey<A>,
    reply: &mut Flow<A>,
) -> Result<(), Reason> {
    let ports = NonZeroU32::new(settings.nat_port_count).ok_or(Reason::TablesIncomplete)?;
    let choices =
        NonZeroU32::new(ports.get() * backend.nat_sources).ok_or(Reason::NextHopUnknown)?;
    let cursor = tables.next_nat_cursor(reply.backend).ok_or(Reason::TablesIncomplete)?;
    let stride = (choices.get() / NAT_TRIES) | 1;
    let mut half_open = NONE;
    // One more than there are tries: a half-open handshake's.
    for attempt in 0..=NAT_TRIES {
        let is_last = attempt == NAT_TRIES;
        let number =
            if is_last { half_open } else { cursor.wrapping_add(attempt * stride) % choices };
        if number == NONE {
            break;
        }
        let words = tables
            .nat_source(backend.nat_source + number / ports)
            .ok_or(Reason::TablesIncomplete)?;
        key.destination = A::from_words(words);
        key.destination_port = NetworkU16::new((settings.nat_port_first + number % ports) as u16);
        match claim(tables, key, reply, is_last) {
            Ok(()) => return Ok(()),
            Err(Claim::Full) => return Err(Reason::FlowTableFull),
            Err(Claim::HalfOpen) if half_open == NONE => half_open = number,
            Err(Claim::HalfOpen) => {}
            Err(Claim::Taken) => {}
        }
    }
    Err(Reason::NatPortsExhausted)
}

/// No port: there are fewer. An option would be read while it has no value, as the compiler likes,
/// which the verifier doesn't.
const NONE: u32 = u32::MAX;

/// Why a key can't be had.
enum Claim {
    /// A connection that isn't closed has it.
    Taken,
    /// A half-open handshake has it.
    HalfOpen,
    /// There is no room.
    Full,
}

/// Records `reply` under `key`, if no other flow has it that isn't closed. `from_half_open`: a
/// handshake that isn't complete has to give way.
#[inline(always)]
fn claim<A: Family, T: FamilyTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    reply: &mut Flow<A>,
    from_half_open: bool,
) -> Result<(), Claim> {
    if let Some(entry) = tables.find(Table::Established, key) {
        let flow = entry.read();
        if flow.state != FlowState::CLOSED {
            return Err(Claim::Taken);
        }
        forget(tables, Table::Established, key, &flow);
    }
    // Looked up before: the table makes room for an insertion even where it then fails.
    if tables.find(Table::Embryonic, key).is_some() {
        if !from_half_open {
            return Err(Claim::HalfOpen);
        }
        tables.remove(Table::Embryonic, key);
    }
    rewrite::prepare(reply, key);
    tables.insert(Table::Embryonic, key, reply).map_err(|error| match error {
        InsertError::Exists => Claim::Taken,
        InsertError::Full => Claim::Full,
    })
}
