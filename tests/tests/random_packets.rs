//! Random packets through the host's build and the loaded program, compared after each of them,
//! and their tables again and again.
//!
//! `LB_RANDOM_PACKETS` sets how many (default: 100,000), and `LB_RANDOM_SEED` repeats a run.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use lb_common::{abi::Fate, datapath::Reason};
use lb_tests::{
    pair::{Pair, check_transmitted},
    random::Generator,
    setting,
    world::{BACKENDS, World},
};

/// Packets between two comparisons of the tables.
const ROUND: u64 = 10_000;
/// Packets between two changes of a backend's fate.
const UPHEAVAL: u64 = 700;
/// Packets after which both builds start with empty tables, long before the kernel's least recently
/// used handshakes are evicted, which the host's build doesn't do.
const LIFE: u64 = 250_000;

#[test]
fn host_and_kernel_agree_on_random_packets() -> Result<()> {
    let packets = setting("LB_RANDOM_PACKETS", 100_000);
    let first_seed = setting("LB_RANDOM_SEED", fastrand::u64(..));
    let mut reasons: BTreeMap<Reason, u64> = BTreeMap::new();
    let mut done = 0;
    for seed in (0..).map(|life| first_seed.wrapping_add(life)) {
        if done >= packets {
            break;
        }
        println!("seed {seed}, from packet {done} of {packets}");
        let life = LIFE.min(packets - done);
        run(seed, life, &mut reasons).with_context(|| format!("LB_RANDOM_SEED={seed}"))?;
        done += life;
    }
    println!("{done} packets: {reasons:?}");
    // What random packets don't reach, they don't test.
    let unreachable = [
        Reason::PortCollision,
        Reason::TablesIncomplete,
        Reason::NoEgress,
        Reason::NoHeadroom,
        Reason::NatPortsExhausted,
        Reason::FlowTableFull,
        Reason::EmbryonicTableFull,
    ];
    for reason in Reason::ALL {
        let reached = reasons.contains_key(reason);
        assert!(reached || unreachable.contains(reason), "{reason:?} was never reached");
    }
    Ok(())
}

fn run(seed: u64, packets: u64, reasons: &mut BTreeMap<Reason, u64>) -> Result<()> {
    let mut pair = Pair::new(&World::default().with_vlans().with_limits())?;
    let mut generator = Generator::new(seed);
    for packet in 1..=packets {
        let frame = generator.frame();
        let outcome = pair.run(&frame).with_context(|| format!("packet {packet}"))?;
        *reasons.entry(outcome.reason).or_default() += 1;
        check_transmitted(&pair.host.world, &frame, &outcome)?;
        generator.learn(&frame, &outcome);
        if packet % UPHEAVAL == 0 {
            let index = BACKENDS[fastrand::Rng::with_seed(seed ^ packet).usize(0..BACKENDS.len())];
            let fate = [Fate::Keep, Fate::Reset, Fate::Move][(packet / UPHEAVAL % 3) as usize];
            pair.change_backend(index, |backend| {
                backend.fate = fate;
                backend.takes_new_flows = (fate == Fate::Keep).into();
            })?;
        }
        if packet % ROUND == 0 {
            pair.compare_tables().with_context(|| format!("after packet {packet}"))?;
        }
    }
    pair.compare_tables()
}
