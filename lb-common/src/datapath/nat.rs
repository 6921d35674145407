//! Source ports for full NAT.

use super::{InsertError, Reason, Table, Tables, rewrite};
use crate::{
    abi::{Backend, Flow, FlowKey, Settings},
    wire::{Address, NetworkU16},
};

/// How many ports are tried for a new flow before it is refused.
pub const NAT_TRIES: u32 = 16;

/// Whether a port is one that full NAT sends from.
#[inline(always)]
pub(super) const fn is_ours(settings: &Settings, port: NetworkU16) -> bool {
    (port.get() as u32).wrapping_sub(settings.nat_port_first) < settings.nat_port_count
}

/// Finds a source address and port that no other flow to this backend uses, completes `reply`, the
/// direction back to the client, and records it under them in the table of half-open handshakes.
/// Returns the key of that direction.
///
/// The search goes round all ports, so that the one that rested longest comes first.
#[inline(always)]
pub(super) fn reserve<A: Address, T: Tables<A>>(
    tables: &T,
    settings: &Settings,
    backend: &Backend,
    protocol: u32,
    reply: &mut Flow<A>,
) -> Result<FlowKey<A>, Reason> {
    if settings.nat_port_count == 0 {
        return Err(Reason::TablesIncomplete);
    }
    for _ in 0..NAT_TRIES {
        let cursor = tables.next_nat_cursor(reply.backend).ok_or(Reason::TablesIncomplete)?;
        let port = settings.nat_port_first + cursor % settings.nat_port_count;
        let source = cursor / settings.nat_port_count % backend.nat_sources;
        let words =
            tables.nat_source(backend.nat_source + source).ok_or(Reason::TablesIncomplete)?;
        let key = FlowKey {
            source: A::from_words(backend.address),
            destination: A::from_words(words),
            source_port: backend.port,
            destination_port: NetworkU16::new(port as u16),
            protocol,
        };
        if tables.find(Table::Established, &key).is_some() {
            continue;
        }
        rewrite::prepare(reply, &key);
        match tables.insert(Table::Embryonic, &key, reply) {
            Ok(()) => return Ok(key),
            Err(InsertError::Exists) => {}
            Err(InsertError::Full) => return Err(Reason::FlowTableFull),
        }
    }
    Err(Reason::NatPortsExhausted)
}
