//! The hash that picks a slot of a ring.

use crate::{abi::FlowKey, wire::Address};

/// Hashes what identifies a flow: MurmurHash3 (x86, 32 bits) over source, destination, ports and
/// protocol. Balancers that share a VIP and a seed pick the same slot.
#[inline(always)]
pub(super) fn flow<A: Address>(key: &FlowKey<A>, seed: u32) -> u32 {
    let ports = (u32::from(key.source_port.get()) << 16) | u32::from(key.destination_port.get());
    let mut hash = address(seed, key.source);
    hash = address(hash, key.destination);
    hash = mix(hash, ports);
    hash = mix(hash, key.protocol);
    finish(hash ^ (A::WORDS as u32 * 8 + 8))
}

/// The same of a client, from whatever port it connects.
#[inline(always)]
pub(super) fn client<A: Address>(key: &FlowKey<A>, seed: u32) -> u32 {
    let mut hash = address(seed, key.source);
    hash = address(hash, key.destination);
    hash = mix(hash, u32::from(key.destination_port.get()));
    hash = mix(hash, key.protocol);
    finish(hash ^ (A::WORDS as u32 * 8 + 8))
}

#[inline(always)]
fn address<A: Address>(mut hash: u32, address: A) -> u32 {
    let words = address.words();
    for word in words.iter().take(A::WORDS) {
        hash = mix(hash, word.get());
    }
    hash
}

#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (hash ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

#[inline(always)]
const fn finish(mut hash: u32) -> u32 {
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
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
    use crate::wire::{Ipv4Address, NetworkU16};
    use core::net::Ipv4Addr;

    #[test]
    fn the_words_are_hashed_as_murmur3_does() {
        // MurmurHash3_x86_32 of the published test vectors: four zero bytes with seed 0, and
        // "aaaa" with seed 0x9747b28c.
        assert_eq!(finish(mix(0, 0) ^ 4), 0x2362_f9de);
        assert_eq!(finish(mix(0x9747_b28c, u32::from_le_bytes(*b"aaaa")) ^ 4), 0x5a97_808a);
    }

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
