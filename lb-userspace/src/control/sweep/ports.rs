//! Whether the pools of source ports say of each port what the tables of flows say.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use lb_common::{
    abi::{
        Direction, Flow, FlowKey, FlowState, PORTS_A_WORD, PoolHead, generation_start, port_words,
    },
    wire::Address,
};

use super::Orders;
use crate::dataplane::PortMemory;

/// Compares pools with flows, round by round.
#[derive(Debug, Default)]
pub(super) struct PortAudit {
    /// Ports in use, by pool.
    pools: BTreeMap<u32, Used>,
}

/// The ports of one pool.
#[derive(Debug)]
struct Used {
    /// How many it has.
    ports: u32,
    /// Those that a flow was seen to use in this round.
    now: Bits,
    /// The same of the round before, and those that weren't free at its end.
    before: Option<(Bits, Bits)>,
    /// Those that aren't free at the end of this round.
    taken: Bits,
}

/// A bit for each port. Most pools have few ports in use, if any: without any, there is nothing to hold.
#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    /// The bits of a word's ports.
    fn word(&self, number: usize) -> u64 {
        self.0.get(number).copied().unwrap_or(0)
    }

    /// Sets more bits of a word.
    fn add(&mut self, number: usize, bits: u64) {
        if bits != 0 {
            if self.0.len() <= number {
                self.0.resize(number + 1, 0);
            }
            self.0[number] |= bits;
        }
    }
}

impl PortAudit {
    /// Begins a round.
    pub(super) fn begin(&mut self, orders: &Orders) {
        let (_, range) = orders.ports;
        let mut pools = BTreeMap::new();
        for (pool, _, sources) in orders.backends.values().filter_map(|backend| backend.pool) {
            let ports = range * sources;
            let before = self.pools.remove(&pool).filter(|used| used.ports == ports);
            let before = before.map(|used| (used.now, used.taken));
            let (now, taken) = (Bits::default(), Bits::default());
            pools.entry(pool).or_insert(Used { ports, now, before, taken });
        }
        self.pools = pools;
    }

    /// Takes in an entry.
    pub(super) fn see<A: Address>(&mut self, orders: &Orders, key: &FlowKey<A>, flow: &Flow<A>) {
        if !flow.forwarding.hides_client()
            || flow.direction != Direction::ToClient as u8
            || flow.state == FlowState::CLOSED
        {
            return;
        }
        let pool = orders.backends.get(&flow.backend).and_then(|backend| backend.pool);
        let Some((pool, first_source, sources)) = pool else { return };
        let (first, range) = orders.ports;
        let port = u32::from(key.destination_port.get()).wrapping_sub(first);
        let source = u32::from(flow.nat_source).wrapping_sub(first_source);
        if port >= range || source >= sources {
            return;
        }
        let number = source * range + port;
        if let Some(used) = self.pools.get_mut(&pool) {
            used.now.add((number / PORTS_A_WORD) as usize, 1 << (number % PORTS_A_WORD));
        }
    }

    /// Ends a round: what flows use isn't free, and what none was seen to use in two rounds is, for when all
    /// are used that are free now; but not what was taken since the end of the round before.
    pub(super) fn end(&mut self, memory: &PortMemory) {
        let words = memory.words();
        for (pool, used) in &mut self.pools {
            let Some(head) = words.get(*pool as usize) else { continue };
            let generation = PoolHead::from_word(head.load(Ordering::Relaxed)).generation;
            let [present, next] = [generation, generation.wrapping_add(1)]
                .map(|generation| generation_start(*pool, used.ports, generation) as usize);
            for number in 0..port_words(used.ports) as usize {
                let (Some(present), Some(next)) =
                    (words.get(present + number), words.get(next + number))
                else {
                    break;
                };
                let in_use = used.now.word(number);
                if in_use != 0 {
                    present.fetch_and(!in_use, Ordering::Relaxed);
                    next.fetch_and(!in_use, Ordering::Relaxed);
                }
                let exist = used.ports - number as u32 * PORTS_A_WORD;
                let exist = if exist >= PORTS_A_WORD { u64::MAX } else { (1 << exist) - 1 };
                let free = present.load(Ordering::Relaxed) | next.load(Ordering::Relaxed);
                let taken = exist & !free;
                used.taken.add(number, taken);
                let Some((in_use_before, taken_before)) = &used.before else { continue };
                let lost =
                    taken & taken_before.word(number) & !(in_use | in_use_before.word(number));
                if lost != 0 {
                    next.fetch_or(lost, Ordering::Relaxed);
                }
            }
        }
    }
}
