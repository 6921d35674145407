//! The direction back to the client, where replies pass through us: source ports for full NAT.

use core::num::NonZeroU32;

use super::{InsertError, Reason, Table, Tables, rewrite, tables::forget};
use crate::{
    abi::{Backend, Flow, FlowKey, FlowState, Settings},
    wire::{Address, NetworkU16},
};

/// How many ports are tried for a new flow before it is refused.
pub const NAT_TRIES: u32 = 16;

/// Whether a port is one that full NAT sends from.
#[inline(always)]
pub(super) const fn is_ours(settings: &Settings, port: NetworkU16) -> bool {
    (port.get() as u32).wrapping_sub(settings.nat_port_first) < settings.nat_port_count
}

/// Completes `reply`, the direction back to the client, and records it in the table of half-open
/// handshakes under the key that it returns.
#[inline(always)]
pub(super) fn reserve<A: Address, T: Tables<A>>(
    tables: &T,
    settings: &Settings,
    backend: &Backend,
    protocol: u32,
    reply: &mut Flow<A>,
) -> Result<FlowKey<A>, Reason> {
    if backend.forwarding.hides_client() {
        return reserve_port(tables, settings, backend, protocol, reply);
    }
    let key = FlowKey {
        source: A::from_words(backend.address),
        destination: reply.destination,
        source_port: backend.port,
        destination_port: reply.destination_port,
        protocol,
    };
    match claim(tables, &key, reply, true) {
        Ok(()) => Ok(key),
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
fn reserve_port<A: Address, T: Tables<A>>(
    tables: &T,
    settings: &Settings,
    backend: &Backend,
    protocol: u32,
    reply: &mut Flow<A>,
) -> Result<FlowKey<A>, Reason> {
    let ports = NonZeroU32::new(settings.nat_port_count).ok_or(Reason::TablesIncomplete)?;
    let choices =
        NonZeroU32::new(ports.get() * backend.nat_sources).ok_or(Reason::NextHopUnknown)?;
    let key = |number: u32| {
        let choice = number % choices;
        let port = settings.nat_port_first + choice % ports;
        let words = tables
            .nat_source(backend.nat_source + choice / ports)
            .ok_or(Reason::TablesIncomplete)?;
        Ok(FlowKey {
            source: A::from_words(backend.address),
            destination: A::from_words(words),
            source_port: backend.port,
            destination_port: NetworkU16::new(port as u16),
            protocol,
        })
    };
    let cursor = tables.next_nat_cursor(reply.backend).ok_or(Reason::TablesIncomplete)?;
    let stride = (choices.get() / NAT_TRIES) | 1;
    let mut half_open = None;
    for attempt in 0..NAT_TRIES {
        let key = key(cursor.wrapping_add(attempt * stride))?;
        match claim(tables, &key, reply, false) {
            Ok(()) => return Ok(key),
            Err(Claim::Full) => return Err(Reason::FlowTableFull),
            Err(Claim::HalfOpen) => half_open = Some(half_open.unwrap_or(key)),
            Err(Claim::Taken) => {}
        }
    }
    if let Some(key) = half_open
        && claim(tables, &key, reply, true).is_ok()
    {
        return Ok(key);
    }
    Err(Reason::NatPortsExhausted)
}

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
fn claim<A: Address, T: Tables<A>>(
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
