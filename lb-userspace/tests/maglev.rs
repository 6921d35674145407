//! Rings beside the published algorithm (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI
//! 2016), at the sizes that it was measured at. `--nocapture` prints the table that ARCHITECTURE.md shows.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use lb_userspace::control::ring::{Member, build};

/// Backends, as in the paper's figures.
const BACKENDS: u32 = 1000;
/// The sizes there, and how often it is drawn who fails.
const SIZES: [(u32, u32); 2] = [(65_537, 40), (655_373, 2)];
/// So many fail at once.
const FAILED: [usize; 3] = [1, 10, 50];

fn members() -> Vec<Member> {
    (0..BACKENDS)
        .map(|index| Member {
            index: index + 1,
            address: SocketAddr::from((
                [10, 0, (index / 250) as u8, (index % 250 + 1) as u8],
                8080,
            )),
            weight: 1,
            percent: 100,
            available: true,
        })
        .collect()
}

/// A number that looks random, by `SplitMix64` (Steele et al., 2014).
const fn scattered(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// The table of the paper's section 3.4, of those backends.
fn published(backends: &[u32], size: u32) -> Vec<u32> {
    let size = u64::from(size);
    let mut next: Vec<(u64, u64)> = backends
        .iter()
        .map(|backend| {
            let (one, other) =
                (scattered(2 * u64::from(*backend)), scattered(2 * u64::from(*backend) + 1));
            (one % size, other % (size - 1) + 1)
        })
        .collect();
    let mut table = vec![0; size as usize];
    let mut filled = 0;
    loop {
        for (backend, (place, skip)) in backends.iter().zip(&mut next) {
            while table[*place as usize] != 0 {
                *place = (*place + *skip) % size;
            }
            table[*place as usize] = *backend;
            filled += 1;
            if filled == size {
                return table;
            }
        }
    }
}

/// The part of the slots of those who are left that somebody else has now, in percent of all slots.
fn moved(before: &[u32], after: &[u32], gone: &HashSet<u32>) -> f64 {
    let is_moved = |(old, new): &(&u32, &u32)| !gone.contains(old) && old != new;
    before.iter().zip(after).filter(is_moved).count() as f64 * 100.0 / before.len() as f64
}

/// How much more or less than its share one has at most, in percent.
fn imbalance(ring: &[u32]) -> f64 {
    let mut counts: HashMap<u32, u32> = HashMap::new();
    for slot in ring {
        *counts.entry(*slot).or_default() += 1;
    }
    let fair = ring.len() as f64 / counts.len() as f64;
    counts.values().map(|count| (f64::from(*count) - fair).abs() * 100.0 / fair).fold(0.0, f64::max)
}

#[test]
fn failures_disturb_nobody_and_removals_no_more_than_published() {
    let all = members();
    let indices: Vec<u32> = all.iter().map(|member| member.index).collect();
    println!("| slots | gone | published | removed | down |");
    for (size, draws) in SIZES {
        let before = build(&all, size, 0);
        let published_before = published(&indices, size);
        // One slot more or less is what can't be avoided.
        let unavoidable = 100.0 * f64::from(BACKENDS) / f64::from(size);
        assert!(imbalance(&before) <= unavoidable, "{size}: {:.2}%", imbalance(&before));
        for failed in FAILED {
            let (mut by_paper, mut by_removal) = (0.0, 0.0);
            for draw in 0..draws {
                let mut gone = HashSet::new();
                let mut number = u64::from(draw) << 32;
                while gone.len() < failed {
                    gone.insert(indices[(scattered(number) % u64::from(BACKENDS)) as usize]);
                    number += 1;
                }
                let is_left = |index: &u32| !gone.contains(index);
                let left: Vec<u32> = indices.iter().copied().filter(is_left).collect();
                by_paper += moved(&published_before, &published(&left, size), &gone);
                let mut without = all.clone();
                without.retain(|member| is_left(&member.index));
                by_removal += moved(&before, &build(&without, size, 0), &gone);

                let mut failing = all.clone();
                for member in failing.iter_mut().filter(|member| gone.contains(&member.index)) {
                    member.available = false;
                }
                let down = build(&failing, size, 0);
                assert!(moved(&before, &down, &gone) == 0.0, "{size}, {failed}");
                assert!(imbalance(&down) <= unavoidable, "{size}: {:.2}%", imbalance(&down));
            }
            let (by_paper, by_removal) =
                (by_paper / f64::from(draws), by_removal / f64::from(draws));
            println!("| {size} | {failed} | {by_paper:.2}% | {by_removal:.2}% | 0% |");
            // Which ones go makes a difference.
            assert!(
                by_removal <= by_paper * 1.2,
                "{size}, {failed}: {by_removal:.2}% moved, {by_paper:.2}% as published"
            );
        }
    }
}

#[test]
fn shares_are_right_within_one_in_a_hundred_at_the_sizes_in_use() {
    use lb_userspace::control::ring::size;
    for count in [2, 3, 10, 81, 82, 100, 163, 1000] {
        let some = &members()[..count];
        let ring = build(some, size(count), 0);
        assert!(imbalance(&ring) <= 1.0, "{count}: {:.2}%", imbalance(&ring));
    }
}
