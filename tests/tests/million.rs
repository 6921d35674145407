//! A million flows at once in the loaded program, and what is done with them.
//!
//! `LB_LIST_WITH` names another `lb` that lists them, such as one that is built with optimisation.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use lb_common::datapath::Table;
use lb_tests::{
    frame::{Segment, flags},
    kernel::Kernel,
    seen::Seen,
    setting,
    world::{BACKENDS, Socket, VIP, World, backend_address, backend_mac},
};

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");
const FLOWS: u32 = 1_000_000;
const RING_CHANGES: u32 = 1000;
/// Addresses that full NAT sends from: three backends, each with so many times 64,512 ports.
const SOURCES: u32 = 6;

fn client(number: u32) -> Socket {
    let [_, high, middle, _] = (number / 50_000).to_le_bytes();
    let low = (number / 50_000 % 256) as u8;
    (IpAddr::V4(Ipv4Addr::new(198, 18 + middle, high, low)), 1024 + (number % 50_000) as u16)
}

fn world() -> World {
    let mut world = World { flows: FLOWS + FLOWS / 20, ..World::default() };
    (world.settings.nat_port_first, world.settings.nat_port_count) = (1024, 64_512);
    for number in 1..SOURCES {
        let address = Ipv4Addr::new(10, 77, 1, number as u8);
        world.nat_sources.push(lb_common::wire::words(address.into()));
    }
    // Their addresses lie behind the one of IPv6.
    let first = world.nat_sources.len() as u32 - (SOURCES - 1);
    let ports = lb_common::abi::pool_words(64_512 * SOURCES);
    for (number, backend) in (0..).zip(&mut world.backends[..BACKENDS.len()]) {
        (backend.nat_source, backend.nat_sources) = (first - 1, SOURCES);
        backend.ports = 10_000 + number * ports;
    }
    world.nat_sources[first as usize - 1] = world.nat_sources[0];
    for backend in &mut world.backends[BACKENDS.len()..] {
        // The others have none in this test.
        backend.nat_sources = 0;
    }
    world
}

/// The segment of a flow that a client sends.
fn segment(number: u32, bits: u8) -> Vec<u8> {
    let mut segment = Segment::syn(client(number), VIP).with_flags(bits);
    segment.acknowledgement = 5001;
    segment.sequence = if bits == flags::SYN { 1000 } else { 1001 };
    segment.build()
}

/// Sends a client's segment, and returns the backend that it goes to and where it seems to come from.
fn send(kernel: &mut Kernel, number: u32, bits: u8) -> Result<(u32, Socket)> {
    let outcome = kernel.run(&segment(number, bits))?;
    let seen = Seen::new(&outcome.frame);
    let backend = BACKENDS.into_iter().find(|index| backend_address(*index) == seen.destination);
    Ok((backend.with_context(|| format!("flow {number}: {outcome:02x?}"))?, seen.source))
}

#[test]
fn each_of_a_million_flows_stays_on_its_backend_through_a_thousand_rings() -> Result<()> {
    let mut world = world();
    let mut kernel = Kernel::new(&world)?;
    let start = Instant::now();
    let mut homes = Vec::new();
    for number in 0..FLOWS {
        let (backend, nat) = send(&mut kernel, number, flags::SYN)?;
        let mut answer =
            Segment::syn(backend_address(backend), nat).with_flags(flags::SYN | flags::ACK);
        answer.source_mac = backend_mac(backend);
        (answer.sequence, answer.acknowledgement) = (5000, 1001);
        kernel.run(&answer.build())?;
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
