//! The direction back to the client, where replies pass through us: source ports for full NAT.

use core::{hint, num::NonZeroU32};

use super::{Family, FamilyTables, InsertError, Reason, Stop, Table, Tables, rewrite};
use crate::{
    abi::{
        Backend, Direction, Flow, FlowKey, FlowState, PORTS_A_WORD, PoolHead, Settings,
        generation_start, port_words,
    },
    wire::NetworkU16,
};

/// How many ports are tried for a new flow where none is free: those of handshakes that aren't complete.
pub const NAT_TRIES: u32 = 16;
/// How many of those are tried first that are free by the pool, which isn't always right.
const FREE_TRIES: u32 = 4;
/// How many words of a pool are looked through for one connection: 32,768 ports, all of an address unless
/// `nat.ports` is set. The next connection goes on from there.
const MOST_WORDS: u32 = 512;

/// Whether a port is one that full NAT sends from.
#[inline(always)]
pub(super) const fn is_ours(settings: &Settings, port: NetworkU16) -> bool {
    (port.get() as u32).wrapping_sub(settings.nat_port_first) < settings.nat_port_count
}

/// Completes `reply`, the direction back to the client, and records it in the table of half-open
/// handshakes under `key`. That is the answer to what the client sends, until full NAT gives it
/// another receiver. Of `memory`, it is of no interest what the first word holds before and afterwards; the second
/// says how often it was tried for this connection.
///
/// A port that isn't free after all is no loop's business, of which the verifier would follow every round:
/// [`Stop::Again`].
#[inline(always)]
pub(super) fn reserve<A: Family, T: FamilyTables<A>>(
    tables: &T,
    settings: &Settings,
    backend: &Backend,
    key: &mut FlowKey<A>,
    reply: &mut Flow<A>,
    memory: &mut [u32; 2],
) -> Result<(), Stop> {
    if backend.forwarding.hides_client() {
        return reserve_port(tables, settings, backend, key, reply, memory);
    }
    // A handshake that the backend hasn't answered has to give way.
    if let Some(entry) = tables.find(Table::Embryonic, key) {
        let peer = entry.read().peer_key(key.protocol);
        let request = tables.find(Table::Embryonic, &peer);
        if request.is_some_and(|request| request.read().state == FlowState::ANSWERED) {
            return Err(Reason::TupleInUse.into());
        }
        tables.remove(Table::Embryonic, key);
    }
    match claim_unshaken(tables, key, reply) {
        Ok(()) => Ok(()),
        Err(Claim::Full) => Err(Reason::EmbryonicTableFull.into()),
        Err(Claim::Taken) => Err(Reason::TupleInUse.into()),
    }
}

/// Finds a source address and port that no other flow to this backend uses.
///
/// A free one is taken from the backend's pool, in which the one that rested longest comes first. Where
/// none is free, a half-open handshake or a closed connection gives its own away: a flood of handshakes
/// must not keep everyone out.
#[inline(always)]
fn reserve_port<A: Family, T: FamilyTables<A>>(
    tables: &T,
    settings: &Settings,
    backend: &Backend,
    key: &mut FlowKey<A>,
    reply: &mut Flow<A>,
    memory: &mut [u32; 2],
) -> Result<(), Stop> {
    let Some(ports) = NonZeroU32::new(pool_ports(settings, backend)) else {
        return Err(Reason::NextHopUnknown.into());
    };
    let [memory, tries] = memory;
    if *tries < FREE_TRIES
        && let Some(port) = take(tables, backend.ports, ports.get(), memory)
    {
        name(tables, settings, backend, port, key, reply)?;
        return match claim(tables, key, reply) {
            Ok(()) => Ok(()),
            Err(Claim::Full) => {
                give(tables, backend.ports, ports.get(), port);
                Err(Reason::EmbryonicTableFull.into())
            }
            // The bit was wrong: it stays cleared.
            Err(Claim::Taken) => {
                *tries += 1;
                Err(Stop::Again)
            }
        };
    }
    Ok(rob(tables, settings, backend, ports, key, reply)?)
}

/// Ports in a backend's pool: those of each address, one address after the other.
#[inline(always)]
const fn pool_ports(settings: &Settings, backend: &Backend) -> u32 {
    settings.nat_port_count * backend.nat_sources as u32
}

/// Takes the port of a half-open handshake or of a closed connection, or one that nobody has though its bit
/// says so, from where the last search ended.
#[inline(always)]
fn rob<A: Family, T: FamilyTables<A>>(
    tables: &T,
    settings: &Settings,
    backend: &Backend,
    ports: NonZeroU32,
    key: &mut FlowKey<A>,
    reply: &mut Flow<A>,
) -> Result<(), Reason> {
    let word = tables.ports_word(backend.ports).ok_or(Reason::TablesIncomplete)?;
    let head = PoolHead::from_word(word);
    for number in 1..=NAT_TRIES {
        let port = head.robbed.wrapping_add(number) % ports;
        name(tables, settings, backend, port, key, reply)?;
        tables.remove(Table::Embryonic, key);
        let claimed = claim(tables, key, reply);
        if claimed.is_ok() || number == NAT_TRIES {
            set_head(tables, backend.ports, PoolHead { robbed: port, ..head });
        }
        match claimed {
            Ok(()) => return Ok(()),
            Err(Claim::Full) => return Err(Reason::EmbryonicTableFull),
            Err(Claim::Taken) => {}
        }
    }
    Err(Reason::NatPortsExhausted)
}

/// Writes down the address and port that a flow is sent from: the port of that number in the pool.
#[inline(always)]
fn name<A: Family, T: FamilyTables<A>>(
    tables: &T,
    settings: &Settings,
    backend: &Backend,
    port: u32,
    key: &mut FlowKey<A>,
    reply: &mut Flow<A>,
) -> Result<(), Reason> {
    let ports = NonZeroU32::new(settings.nat_port_count).ok_or(Reason::TablesIncomplete)?;
    let index = backend.nat_source + port / ports;
    let words = *tables.nat_source(index).ok_or(Reason::TablesIncomplete)?;
    key.destination = A::from_words(words);
    key.destination_port = NetworkU16::new((settings.nat_port_first + port % ports) as u16);
    reply.nat_source = index as u16;
    Ok(())
}

/// Takes the first free port of a pool of so many, and returns its number.
#[inline(always)]
fn take<T: Tables>(tables: &T, pool: u32, ports: u32, memory: &mut u32) -> Option<u32> {
    let mut head = PoolHead::from_word(tables.ports_word(pool)?);
    if let Some(port) = take_of_generation(tables, pool, ports, &mut head, memory) {
        return Some(port);
    }
    if u32::from(head.cursor) < port_words(ports) {
        // There is more of it than one connection looks through.
        return None;
    }
    // The present generation is empty: from now on it is that of the ports given back.
    head.cursor = 0;
    head.generation = head.generation.wrapping_add(1);
    take_of_generation(tables, pool, ports, &mut head, memory)
}

/// Takes the first port of the present generation that is free from the cursor on.
#[inline(always)]
fn take_of_generation<T: Tables>(
    tables: &T,
    pool: u32,
    ports: u32,
    head: &mut PoolHead,
    memory: &mut u32,
) -> Option<u32> {
    let start = generation_start(pool, ports, head.generation);
    let words = port_words(ports);
    // The position goes through memory, of which the verifier knows nothing: else it would go on with one
    // path for each word.
    let mut position = memory;
    *position = head.cursor.into();
    // No option: it would be read while it has no value, as the compiler likes, which the verifier doesn't.
    let mut port = PORTS_A_WORD;
    for _ in 0..MOST_WORDS {
        position = hint::black_box(position);
        if *position >= words {
            break;
        }
        let free = tables.ports_word(start + *position)?;
        let bit = free & free.wrapping_neg();
        // Another CPU may have been faster.
        if bit != 0 && tables.take_ports(start + *position, bit)? & bit != 0 {
            port = bit.trailing_zeros();
            break;
        }
        *position += 1;
    }
    position = hint::black_box(position);
    head.cursor = *position as u16;
    set_head(tables, pool, *head);
    (port < PORTS_A_WORD).then_some(*position * PORTS_A_WORD + port)
}

#[inline(always)]
fn set_head<T: Tables>(tables: &T, pool: u32, head: PoolHead) {
    tables.set_ports_word(pool, head.word());
}

/// Gives a port back, for when all are used that are free now.
#[inline(always)]
fn give<T: Tables>(tables: &T, pool: u32, ports: u32, port: u32) {
    let Some(word) = tables.ports_word(pool) else { return };
    let generation = PoolHead::from_word(word).generation.wrapping_add(1);
    let place = generation_start(pool, ports, generation) + port / PORTS_A_WORD;
    tables.give_ports(place, 1 << (port % PORTS_A_WORD));
}

/// Gives the port back that a flow was sent from, by full NAT. `flow` is either direction's entry.
#[inline(always)]
pub(super) fn give_back<A: Family, T: FamilyTables<A>>(
    tables: &T,
    flow: &Flow<A>,
    key: &FlowKey<A>,
) {
    if !flow.forwarding.hides_client() {
        return;
    }
    let (Some(settings), Some(backend)) = (tables.settings(), tables.backend(flow.backend)) else {
        return;
    };
    let port = match Direction::from_u8(flow.direction) {
        Direction::ToBackend => flow.source_port,
        Direction::ToClient => key.destination_port,
    };
    let port = u32::from(port.get()).wrapping_sub(settings.nat_port_first);
    let source = u32::from(flow.nat_source).wrapping_sub(backend.nat_source);
    // Range and addresses may be others by now.
    if port < settings.nat_port_count && source < u32::from(backend.nat_sources) {
        let number = source * settings.nat_port_count + port;
        give(tables, backend.ports, pool_ports(&settings, backend), number);
    }
}

/// Why a key can't be had.
enum Claim {
    /// A flow has it that isn't surely over.
    Taken,
    /// There is no room.
    Full,
}

/// Records `reply` under `key`, if no other flow has it that isn't surely over.
#[inline(always)]
fn claim<A: Family, T: FamilyTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    reply: &mut Flow<A>,
) -> Result<(), Claim> {
    // Looked up before: the table makes room for an insertion even where it then fails.
    if tables.find(Table::Embryonic, key).is_some() {
        return Err(Claim::Taken);
    }
    claim_unshaken(tables, key, reply)
}

/// The same where no handshake has it.
#[inline(always)]
fn claim_unshaken<A: Family, T: FamilyTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    reply: &mut Flow<A>,
) -> Result<(), Claim> {
    if let Some(entry) = tables.find(Table::Established, key) {
        let flow = entry.read();
        if !flow.is_surely_over() {
            return Err(Claim::Taken);
        }
        tables.remove(Table::Established, &flow.peer_key(key.protocol));
        tables.remove(Table::Established, key);
    }
    rewrite::prepare(reply, key);
    tables.insert(Table::Embryonic, key, reply).map_err(|error| match error {
        InsertError::Exists => Claim::Taken,
        InsertError::Full => Claim::Full,
    })
}
