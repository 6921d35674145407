//! The hash that picks a slot of a ring.

use crate::{
    abi::FlowKey,
    wire::{Address, NetworkU16},
};

/// Hashes what identifies a flow: source, destination, ports and protocol. Balancers that share a VIP and a seed pick the same
/// slot.
///
/// Each word of 64 bits is taken in by [`mix_half`]: a chain of three multiplications over IPv4, where MurmurHash3 has one of
/// fourteen, which is what a packet would wait for.
#[inline(always)]
pub(super) fn flow<A: Address>(key: &FlowKey<A>, seed: u32) -> u32 {
    finish(addresses::<A, false>(key, seed.into()) ^ rest(key))
}

/// The same of a client, from whatever port it connects.
#[inline(always)]
pub(super) fn client<A: Address>(key: &FlowKey<A>, seed: u32) -> u32 {
    let flow = FlowKey { source_port: NetworkU16::new(0), ..*key };
    self::flow(&flow, seed)
}

/// A number of the key's that depends on a secret: nobody outside can tell of two whether they have the same.
#[inline(always)]
pub(super) fn keyed<A: Address>(key: &FlowKey<A>, secret: u64) -> u64 {
    mix_long(addresses::<A, true>(key, secret) ^ rest(key))
}

/// Takes in the addresses, whose words may be somebody's to choose. `WELL`: whoever doesn't know what it began with can't choose
/// words that make up for what others change.
#[inline(always)]
fn addresses<A: Address, const WELL: bool>(key: &FlowKey<A>, mut hash: u64) -> u64 {
    let (source, destination) = (key.source.words(), key.destination.words());
    for word in 0..A::WORDS {
        let pair = u64::from(source[word].get()) << 32 | u64::from(destination[word].get());
        // After a single pair, hardly anything is left to be chosen: ports, which don't reach all bits that it changes.
        hash = if WELL && A::WORDS > 1 { mix_long(hash ^ pair) } else { mix_half(hash ^ pair) };
    }
    hash
}

/// What is in a key beside the addresses.
#[inline(always)]
const fn rest<A>(key: &FlowKey<A>) -> u64 {
    let ports = (key.source_port.get() as u64) << 16 | key.destination_port.get() as u64;
    (key.protocol as u64) << 32 | ports
}

#[inline(always)]
const fn finish(hash: u64) -> u32 {
    (mix_half(hash).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32) as u32
}

/// Spreads each bit over those above it, and the upper half over the lower one, one to one.
#[inline(always)]
pub(super) const fn mix_half(number: u64) -> u64 {
    let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    number ^ (number >> 32)
}

/// Spreads each bit over all of them, one to one.
#[inline(always)]
pub(super) const fn mix_long(mut number: u64) -> u64 {
    number = (number ^ (number >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    number = (number ^ (number >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    number ^ (number >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Ipv4Address;
    use core::net::Ipv4Addr;

    #[test]
    fn neighbouring_ports_and_addresses_spread_evenly() {
        const BUCKETS: usize = 64;
        let mut counts = [0u32; BUCKETS];
        for host in 0..=255u8 {
            for port in 40_000..40_256u16 {
                let key = FlowKey {
                    source: Ipv4Address::from(Ipv4Addr::new(198, 51, 100, host)),
                    destination: Ipv4Address::from(Ipv4Addr::new(203, 0, 113, 1)),
                    source_port: NetworkU16::new(port),
                    destination_port: NetworkU16::new(8080),
                    protocol: 6,
                };
                counts[((u64::from(flow(&key, 0)) * BUCKETS as u64) >> 32) as usize] += 1;
            }
        }
        // 65,536 keys in 64 buckets: 1,024 each with a standard deviation of 32; 5 of those.
        assert!(counts.iter().all(|count| (864..=1184).contains(count)), "{counts:?}");
    }
}
