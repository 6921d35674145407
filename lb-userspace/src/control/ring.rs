//! Ring building: Maglev consistent hashing (Eisenbud et al., NSDI 2016, section 3.4), in two steps.
//!
//! 1. Every configured backend fills its share of the slots, each by its own permutation, turn by
//!    turn.
//! 2. The slots of backends that take no new flows are handed to those that do, again turn by turn.
//!
//! So a backend that goes down, or drains, moves no slot of the others, and when it comes back the
//! ring is what it was. Only a change to the configured set or to weights disturbs others, and the
//! size is chosen so that for ten backends this stays below two in a hundred.

use std::{cmp::Reverse, collections::BinaryHeap, hash::Hasher, net::SocketAddr};

use fixedbitset::FixedBitSet;
use siphasher::sip::SipHasher13;

/// A backend as its ring sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// What stands in its slots.
    pub index: u32,
    /// Its address and port, by which it is recognised on every balancer.
    pub address: SocketAddr,
    /// Share of the slots, relative to the others'.
    pub weight: u32,
    /// How much of that it has so far, in percent: less than 100 while it warms up.
    pub percent: u32,
    /// Whether new flows may go to it.
    pub available: bool,
}

/// Sizes of rings: primes.
const SIZES: [u32; 8] = [8191, 16_381, 32_749, 65_521, 131_071, 262_139, 524_287, 1_048_573];
/// Fewest slots for each backend, so that shares are right within one in a hundred.
const SLOTS_A_BACKEND: usize = 100;

/// The size of a ring for a number of backends.
///
/// The smallest size serves up to 81 of them. A tenth of it would still divide evenly, but would
/// move 2.7% of the other backends' slots when one of ten is removed from the configuration.
pub fn size(backends: usize) -> u32 {
    let wanted = backends.saturating_mul(SLOTS_A_BACKEND);
    SIZES.into_iter().find(|size| *size as usize >= wanted).unwrap_or(SIZES[SIZES.len() - 1])
}

/// Fills a ring of `size` slots, which is prime. Empty where no member is available.
///
/// The result depends on the members, and not on their order: balancers with the same configuration build the same ring.
pub fn build(members: &[Member], size: u32, seed: u32) -> Vec<u32> {
    let mut members: Vec<(String, &Member)> = members
        .iter()
        .filter(|member| member.weight > 0)
        .map(|member| (member.address.to_string(), member))
        .collect();
    members.sort_by(|(first, _), (second, _)| first.cmp(second));
    if !members.iter().any(|(_, member)| member.available) {
        return Vec::new();
    }
    let (identities, members): (Vec<String>, Vec<&Member>) = members.into_iter().unzip();

    let permutations =
        || identities.iter().map(|identity| Permutation::new(identity, size, seed)).collect();
    let mut present: Vec<Permutation> = permutations();
    let mut owners: Vec<Option<u32>> = vec![None; size as usize];
    let weights: Vec<u32> = members.iter().map(|member| member.weight).collect();
    fill(&mut owners, &mut present, &weights, &shares(&weights, size));

    // Who is left takes over, counting what they have already; who warms up doesn't keep all of it.
    let part = |member: &&Member| if member.available { member.weight * member.percent } else { 0 };
    let available: Vec<u32> = members.iter().map(part).collect();
    let shares = shares(&available, size);
    let mut kept = vec![0; members.len()];
    for slot in &mut owners {
        let Some(owner) = slot.map(|owner| owner as usize) else { continue };
        kept[owner] += 1;
        let is_warm = members[owner].percent >= 100;
        if !members[owner].available || !(is_warm || kept[owner] <= shares[owner]) {
            *slot = None;
        }
    }
    fill(&mut owners, &mut permutations(), &available, &shares);

    owners.into_iter().flatten().map(|owner| members[owner as usize].index).collect()
}

/// The order in which members get connections in turn: each as often as its weight says, and as evenly as can be. Where
/// that would take more than `longest` places, weights are rounded. Empty where no member is available.
pub fn order(members: &[Member], longest: u32) -> Vec<u32> {
    let mut members: Vec<&Member> =
        members.iter().filter(|member| member.available && member.weight > 0).collect();
    members.sort_by_key(|member| member.address);
    let mut turns: Vec<u32> = members.iter().map(|member| member.weight * member.percent).collect();
    let divisor = turns.iter().copied().fold(0, greatest_common_divisor).max(1);
    turns.iter_mut().for_each(|turns| *turns /= divisor);
    if turns.iter().map(|turns| u64::from(*turns)).sum::<u64>() > u64::from(longest) {
        turns = shares(&turns, longest);
    }
    // When each one's next turn is due, if all of them were spread evenly over one round.
    let due = |taken: u64, turns: u32| ((2 * taken + 1) << 32) / u64::from(turns);
    let mut queue: BinaryHeap<Reverse<(u64, usize, u64)>> = (0..members.len())
        .filter(|number| turns[*number] > 0)
        .map(|number| Reverse((due(0, turns[number]), number, 0)))
        .collect();
    let mut order = Vec::new();
    while let Some(Reverse((_, number, taken))) = queue.pop() {
        order.push(members[number].index);
        if taken + 1 < u64::from(turns[number]) {
            queue.push(Reverse((due(taken + 1, turns[number]), number, taken + 1)));
        }
    }
    order
}

fn greatest_common_divisor(first: u32, second: u32) -> u32 {
    if second == 0 { first } else { greatest_common_divisor(second, first % second) }
}

/// Whole numbers of slots in proportion to the weights: largest remainders first.
fn shares(weights: &[u32], size: u32) -> Vec<u32> {
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let exact = |weight: &u32| u64::from(*weight) * u64::from(size);
    let mut shares: Vec<u32> =
        weights.iter().map(|weight| (exact(weight) / total) as u32).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|index| Reverse(exact(&weights[*index]) % total));
    let left = size - shares.iter().sum::<u32>();
    for index in order.into_iter().take(left as usize) {
        shares[index] += 1;
    }
    shares
}

/// Lets each owner in turn take the next free slot of its permutation until every slot is taken.
/// Turns come in proportion to weights, and not to shares, which are rounded: as others come and go, those become others by one
/// slot, and every later turn would be another. Who has its share waits.
fn fill(
    owners: &mut [Option<u32>],
    permutations: &mut [Permutation],
    weights: &[u32],
    shares: &[u32],
) {
    let mut missing: Vec<u32> = shares.to_vec();
    let mut free = owners.len();
    // Most looks are at those, at one after the other all over the ring: so it is small.
    let mut taken = FixedBitSet::with_capacity(owners.len());
    for (slot, owner) in owners.iter().enumerate() {
        let Some(owner) = *owner else { continue };
        missing[owner as usize] = missing[owner as usize].saturating_sub(1);
        taken.insert(slot);
        free -= 1;
    }
    let largest = weights.iter().copied().max().unwrap_or(0);
    let mut credit = vec![0; weights.len()];
    while free > 0 {
        for (index, permutation) in permutations.iter_mut().enumerate() {
            if missing[index] == 0 || free == 0 {
                continue;
            }
            // One slot a turn for the largest weight, a fraction for the others.
            credit[index] += weights[index];
            if credit[index] < largest {
                continue;
            }
            credit[index] -= largest;
            let slot = permutation.next_free(&taken);
            owners[slot] = Some(index as u32);
            taken.insert(slot);
            missing[index] -= 1;
            free -= 1;
        }
    }
}

/// The order in which a backend wants slots: all of them, each once, since the size is prime.
struct Permutation {
    next: usize,
    skip: usize,
    size: usize,
}

impl Permutation {
    fn new(identity: &str, size: u32, seed: u32) -> Self {
        let hash = |key: u64| {
            let mut hasher = SipHasher13::new_with_keys(u64::from(seed), key);
            hasher.write(identity.as_bytes());
            hasher.finish()
        };
        let wide = u64::from(size);
        let [next, skip] = [hash(0) % wide, hash(1) % (wide - 1) + 1];
        Self { next: next as usize, skip: skip as usize, size: size as usize }
    }

    fn next_free(&mut self, taken: &FixedBitSet) -> usize {
        loop {
            let slot = self.next;
            self.next += self.skip;
            // Without a division, which would be most of what a ring takes.
            if self.next >= self.size {
                self.next -= self.size;
            }
            if !taken.contains(slot) {
                return slot;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn members(count: u32) -> Vec<Member> {
        (1..=count)
            .map(|index| Member {
                index,
                address: SocketAddr::from(([192, 0, 2, index as u8], 8080)),
                weight: 1,
                percent: 100,
                available: true,
            })
            .collect()
    }

    fn counts(ring: &[u32], highest: u32) -> Vec<usize> {
        (1..=highest).map(|index| ring.iter().filter(|slot| **slot == index).count()).collect()
    }

    /// The part of the slots of backends other than `gone` that another backend has, in percent.
    fn moved(before: &[u32], after: &[u32], gone: u32) -> f64 {
        let others = before.iter().filter(|slot| **slot != gone).count();
        let moved =
            before.iter().zip(after).filter(|(old, new)| **old != gone && old != new).count();
        moved as f64 * 100.0 / others as f64
    }

    #[test]
    fn sizes_are_prime_and_large_enough() {
        for size in SIZES {
            assert!((2..).take_while(|n| n * n <= size).all(|n| size % n != 0), "{size}");
            assert!(size <= lb_common::abi::Ring::MAXIMUM_SIZE);
        }
        assert_eq!(size(1), 8191);
        assert_eq!(size(81), 8191);
        assert_eq!(size(82), 16_381);
        assert_eq!(size(10_000), 1_048_573);
    }

    #[test]
    fn equal_weights_share_equally() {
        for count in [1, 2, 3, 7, 10, 64, 100] {
            let size = size(count as usize);
            let counts = counts(&build(&members(count), size, 0), count);
            let fair = f64::from(size) / f64::from(count);
            for slots in counts {
                assert!((slots as f64 - fair).abs() <= fair / 100.0, "{count}: {slots} of {fair}");
            }
        }
    }

    #[test]
    fn removing_and_adding_one_of_ten_moves_few_others() {
        for seed in 0..20 {
            let all = members(10);
            let before = build(&all, size(10), seed);
            for gone in 1..=10 {
                let mut rest = all.clone();
                rest.retain(|member| member.index != gone);
                let after = build(&rest, size(9), seed);
                let moved = moved(&before, &after, gone);
                assert!(moved <= 2.0, "seed {seed}, {gone}: {moved:.2}% moved");
            }
            // Adding it back gives the ring from before.
            assert_eq!(build(&all, size(10), seed), before);
        }
    }

    #[test]
    fn one_that_warms_up_takes_its_share_step_by_step_and_from_nobody_else_more() {
        let mut all = members(4);
        let full = build(&all, 8191, 0);
        let mut last = 0;
        for percent in [1, 5, 25, 50, 75, 99, 100] {
            all[2].percent = percent;
            let ring = build(&all, 8191, 0);
            let slots = counts(&ring, 4)[2];
            let fair = 8191.0 * f64::from(percent) / f64::from(300 + percent);
            assert!((slots as f64 - fair).abs() <= 1.0, "{percent}%: {slots} of {fair}");
            assert!(slots > last);
            last = slots;
            assert!(full.iter().zip(&ring).all(|(full, now)| *full == 3 || full == now));
        }
        assert_eq!(build(&all, 8191, 0), full);
    }

    #[test]
    fn turns_come_as_often_as_weights_say_and_evenly() {
        let mut three = members(3);
        for (member, weight) in three.iter_mut().zip([30, 20, 10]) {
            member.weight = weight;
        }
        assert_eq!(order(&three, 8191), [1, 2, 1, 3, 2, 1]);
        three[1].available = false;
        assert_eq!(order(&three, 8191), [1, 1, 3, 1]);
        three[2].percent = 50;
        assert_eq!(order(&three, 8191).len(), 7);
        three[0].available = false;
        assert_eq!(order(&three, 8191), [3]);
        three[2].available = false;
        assert!(order(&three, 8191).is_empty());
        // Too many for the room there is.
        let mut many = members(200);
        for (member, weight) in many.iter_mut().zip((1..=256).rev()) {
            member.weight = weight;
        }
        let ring = order(&many, size(200));
        assert!(ring.len() <= size(200) as usize, "{}", ring.len());
        let counts = counts(&ring, 200);
        let fair = |weight: u32| {
            ring.len() as f64 * f64::from(weight) / f64::from((57..=256).sum::<u32>())
        };
        for (member, slots) in many.iter().zip(counts) {
            assert!((slots as f64 - fair(member.weight)).abs() <= 1.0, "{member:?}: {slots}");
        }
    }

    #[test]
    fn the_order_in_the_configuration_does_not_matter() {
        let mut reversed = members(10);
        reversed.reverse();
        assert_eq!(build(&reversed, 8191, 7), build(&members(10), 8191, 7));
        assert_ne!(build(&reversed, 8191, 8), build(&members(10), 8191, 7));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn going_down_moves_no_slot_of_another_and_shares_stay_right(
            weights in prop::collection::vec(0u32..=256, 1..12),
            down in prop::collection::vec(any::<bool>(), 12),
        ) {
            let mut all = members(weights.len() as u32);
            for (member, weight) in all.iter_mut().zip(&weights) {
                member.weight = *weight;
            }
            let before = build(&all, 8191, 0);
            for (member, down) in all.iter_mut().zip(&down) {
                member.available = !down;
            }
            let after = build(&all, 8191, 0);
            let total: u32 =
                all.iter().filter(|member| member.available).map(|member| member.weight).sum();
            if total == 0 {
                prop_assert!(after.is_empty());
                return Ok(());
            }
            prop_assert_eq!(after.len(), 8191);
            for (old, new) in before.iter().zip(&after) {
                let owner = &all[*old as usize - 1];
                prop_assert!(!owner.available || old == new);
            }
            for (member, slots) in all.iter().zip(counts(&after, all.len() as u32)) {
                let weight = if member.available { member.weight } else { 0 };
                let fair = 8191.0 * f64::from(weight) / f64::from(total);
                prop_assert!((slots as f64 - fair).abs() <= 2.0 + fair / 100.0);
            }
        }
    }
}
