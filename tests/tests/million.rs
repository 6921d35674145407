//! A million flows at once in the loaded program, and what is done with them.
//!
//! `LB_LIST_WITH` names another `lb` that lists them, such as one that is built with optimisation.

use std::{process::Command, time::Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use lb_common::datapath::Table;
use lb_tests::{
    crowd,
    frame::flags,
    kernel::Kernel,
    seen::Seen,
    setting,
    world::{BACKENDS, Socket, VIP, backend_address},
};

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");
const FLOWS: u32 = 1_000_000;
const RING_CHANGES: u32 = 1000;
/// Sends a client's segment, and returns the backend that it goes to and where it seems to come from.
fn send(kernel: &mut Kernel, number: u32, bits: u8) -> Result<(u32, Socket)> {
    let outcome = kernel.run(&crowd::segment(VIP, number, bits).build())?;
    let seen = Seen::new(&outcome.frame);
    let backend = BACKENDS.into_iter().find(|index| backend_address(*index) == seen.destination);
    Ok((backend.with_context(|| format!("flow {number}: {outcome:02x?}"))?, seen.source))
}

#[test]
fn each_of_a_million_flows_stays_on_its_backend_through_a_thousand_rings() -> Result<()> {
    let mut world = crowd::world(FLOWS);
    let mut kernel = Kernel::new(&world)?;
    let start = Instant::now();
    let mut homes = Vec::new();
    for number in 0..FLOWS {
        let (backend, nat) = send(&mut kernel, number, flags::SYN)?;
        kernel.run(&crowd::answer(backend, nat).build())?;
        ensure!(send(&mut kernel, number, flags::ACK)? == (backend, nat), "flow {number} moved");
        homes.push((backend as u8, nat));
    }
    println!("{FLOWS} flows were opened in {:?}", start.elapsed());
    let entries = kernel.entries(Table::Established)?;
    ensure!(entries == 2 * FLOWS, "{entries} entries");

    let mut random = Rng::with_seed(1);
    let mut number = 0;
    for _ in 0..RING_CHANGES {
        for slot in world.slots_mut().filter(|slot| BACKENDS.contains(slot)) {
            *slot = BACKENDS[random.usize(0..BACKENDS.len())];
        }
        kernel.write_rings(&world.ring);
        for _ in 0..FLOWS / RING_CHANGES {
            let (backend, nat) = send(&mut kernel, number, flags::ACK)?;
            ensure!((backend as u8, nat) == homes[number as usize], "flow {number} moved");
            number += 1;
        }
    }
    ensure!(number == FLOWS, "every flow was looked at");

    let pins = kernel.pins().directory().parent().context("a directory")?.to_path_buf();
    for (filters, wanted) in [
        (&["--client", "198.18.0.3/32"][..], 50_000),
        (&["--state", "established", "--limit", "1000"], 1000),
        (&["--state", "closed"], 0),
    ] {
        let start = Instant::now();
        let mut command = Command::new(setting("LB_LIST_WITH", LB.to_owned()));
        command.arg("--pin-path").arg(&pins).args(["list", "flows", "--json"]).args(filters);
        let output = command.output()?;
        let took = start.elapsed();
        let error = String::from_utf8_lossy(&output.stderr);
        let flows: Vec<serde_json::Value> =
            serde_json::from_slice(&output.stdout).with_context(|| error.into_owned())?;
        println!("lb list flows {}: {took:?}", filters.join(" "));
        ensure!(flows.len() == wanted, "{filters:?}: {} flows", flows.len());
    }

    // Bytes of a flow's two entries, buckets included.
    const MOST_MEMORY: u64 = 320;
    let maps =
        Command::new(LB).arg("--pin-path").arg(&pins).args(["list", "maps", "--json"]).output()?;
    let maps: Vec<serde_json::Value> = serde_json::from_slice(&maps.stdout)?;
    let flows = maps.iter().find(|map| map["name"] == "FLOWS").context("FLOWS")?;
    let bytes = flows["bytes"].as_u64().context("bytes")?;
    let each = bytes / u64::from(world.flows);
    println!("{bytes} bytes for {} flows: {each} each", world.flows);
    ensure!(each > 100 && each <= MOST_MEMORY, "{each} bytes for each flow");
    Ok(())
}
