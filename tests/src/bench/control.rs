//! What the controller takes: rings, reloads, checks, lists, memory.

use std::{
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_common::abi::{RING_CHUNK_SLOTS, maps as abi};
use lb_userspace::control::ring::{Member, build};
use serde_json::{Value, json};

use super::{
    apart, interruption,
    report::{Bar, Report, median, number},
};
use crate::{
    bed::Bed,
    crowd,
    frame::flags,
    kernel::Kernel,
    many,
    seen::Seen,
    world::{BACKENDS, VIP, World, backend_address},
};

/// Backends, and slots of their ring: some that the controller would give them, and those of the Maglev paper.
const RINGS: [(u32, u32); 6] =
    [(3, 8191), (10, 8191), (100, 10_007), (1000, 65_537), (1000, 100_003), (10_000, 1_000_003)];
const ROUNDS: usize = 9;
const SERVICES: usize = 1000;
const CHECKED: usize = 10_000;
const FLOWS: u32 = 1_000_000;

/// A number that was found, in milliseconds, percent or bytes.
struct Found {
    group: &'static str,
    what: String,
    value: f64,
    unit: &'static str,
}

/// Measures everything whose name has that in it.
///
/// # Errors
///
/// Something can't be started.
pub fn report(lb: &str, only: &str) -> Result<Report> {
    let mut found = Vec::new();
    for (name, measure) in [
        ("rings", rings as fn(&str) -> Result<Vec<Found>>),
        ("reload", reload),
        ("checks", checks),
        ("list", list),
        ("memory", memory),
    ] {
        interruption::demand_none()?;
        if name.contains(only) {
            found.extend(apart(|| measure(lb))?);
            eprintln!("{name}: done");
        }
    }
    let bar = |found: &Found| Bar {
        group: format!("{}, {}", found.group, found.unit),
        label: found.what.clone(),
        value: found.value,
    };
    let result = |found: &Found| json!({ "what": found.what, found.unit: found.value });
    let row = |found: &Found| vec![found.what.clone(), number(found.value), found.unit.to_owned()];
    Ok(Report {
        name: "control",
        title: "What the controller takes".to_owned(),
        unit: "each group by its own measure",
        bars: found.iter().map(bar).collect(),
        scaled_by_group: true,
        headings: vec!["what", "", "unit"],
        rows: found.iter().map(row).collect(),
        results: found.iter().map(result).collect(),
    })
}

/// The one in the middle, in milliseconds.
fn middle(times: Vec<Duration>) -> f64 {
    median(times.into_iter().map(|time| time.as_secs_f64() * 1000.0)).unwrap_or(f64::NAN)
}

/// Rings built, and written to where packets look.
fn rings(_: &str) -> Result<Vec<Found>> {
    let most = RINGS.iter().map(|(_, size)| *size).max().unwrap_or(0);
    let ring = vec![0; most.next_multiple_of(RING_CHUNK_SLOTS) as usize];
    let world = World { ring, ..World::default() };
    let kernel = Kernel::new(&world)?;
    let mut found = Vec::new();
    for (backends, size) in RINGS {
        let members: Vec<Member> = (0..backends)
            .map(|index| Member {
                index: index + 1,
                address: SocketAddr::from((
                    [10, (index >> 16) as u8, (index >> 8) as u8, index as u8],
                    8080,
                )),
                weight: 1,
                percent: 100,
                available: true,
            })
            .collect();
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..ROUNDS {
            let start = Instant::now();
            let slots = build(&members, size, round as u32);
            times[0].push(start.elapsed());
            kernel.write_rings(&slots);
            times[1].push(start.elapsed());
            ensure!(slots.len() == size as usize);
        }
        let [built, live] = times.map(middle);
        for (what, value) in [("built", built), ("built and live", live)] {
            let what = format!("{size} slots for {backends} backends, {what}");
            found.push(Found { group: "rings", what, value, unit: "ms" });
        }
    }
    Ok(found)
}

/// A reload of very many backends.
fn reload(lb: &str) -> Result<Vec<Found>> {
    let mut bed = many::bed(lb)?;
    let text = many::services(SERVICES, many::OF_A_SERVICE, "type = \"none\"");
    bed.write_config(&text)?;
    bed.start_controller(&[])?;
    let mut times = Vec::new();
    for weight in 2..2 + ROUNDS {
        let weight = format!("name = \"b7\"\nweight = {weight}\n");
        bed.write_config(&text.replacen("name = \"b7\"\n", &weight, 1))?;
        let start = Instant::now();
        bed.lb_ok(&["reload"])?;
        times.push(start.elapsed());
    }
    let what =
        format!("{SERVICES} services of {} backends, one weight changed", many::OF_A_SERVICE);
    Ok(vec![Found { group: "reload", what, value: middle(times), unit: "ms" }])
}

/// The processor time of very many checks.
fn checks(lb: &str) -> Result<Vec<Found>> {
    const WATCHED: Duration = Duration::from_secs(10);
    let over = Arc::new(AtomicBool::new(false));
    let mut bed = many::bed(lb)?;
    let _seen = many::answer_checks(bed.backend_namespace("mgmt01")?, &over)?;
    many::start_on_one_cpu(&mut bed, lb, CHECKED)?;
    let process = bed.controller_pid()?;
    let before = many::processor_time(process)?;
    // What is measured is how much it does in a time.
    thread::sleep(WATCHED);
    let used = many::processor_time(process)? - before;
    over.store(true, Ordering::Relaxed);
    let value = used.as_secs_f64() / WATCHED.as_secs_f64() * 100.0;
    let what = format!("{CHECKED} backends checked every {:?}", many::INTERVAL);
    Ok(vec![Found { group: "checks", what, value, unit: "% of a CPU" }])
}

/// Memory of the kernel's for each of what is kept, as much as it says that maps take: where room is made at the start, that
/// room is counted, with buckets and what else belongs to a map.
fn memory(lb: &str) -> Result<Vec<Found>> {
    /// Two entries, one for each direction.
    const BOTH_DIRECTIONS: u32 = 2;
    let bed = Bed::new(lb, "native", 1)?;
    let maps = bed.json(&["list", "maps", "--json"])?;
    let entry = |name: &&str| -> Result<f64> {
        let mut all = maps.as_array().context("a list")?.iter();
        let map = all.find(|map| map["name"] == *name).with_context(|| (*name).to_owned())?;
        let bytes = map["bytes"].as_f64().context("bytes")?;
        Ok(bytes / map["max_entries"].as_f64().context("max_entries")?)
    };
    let each = [
        ("an established flow over IPv4", &[abi::FLOWS][..], BOTH_DIRECTIONS),
        ("a half-open flow over IPv4", &[abi::EMBRYONIC], BOTH_DIRECTIONS),
        ("a service", &[abi::SERVICE_INFO, abi::SERVICE_COUNTERS, abi::SERVICE_LOADS], 1),
        (
            "a backend",
            &[abi::BACKENDS, abi::BACKEND_INFO, abi::BACKEND_COUNTERS, abi::LOADS, abi::REFUSALS],
            1,
        ),
        ("a client that keeps its backend", &[abi::CLIENTS], 1),
    ];
    each.into_iter()
        .map(|(what, names, entries)| {
            let all: Result<Vec<f64>> = names.iter().map(entry).collect();
            let value = all?.iter().sum::<f64>() * f64::from(entries);
            Ok(Found { group: "memory", what: what.to_owned(), value, unit: "bytes" })
        })
        .collect()
}

/// Lists of very many flows.
fn list(lb: &str) -> Result<Vec<Found>> {
    let mut kernel = Kernel::new(&crowd::world(FLOWS))?;
    for number in 0..FLOWS {
        let syn = kernel.run(&crowd::segment(VIP, number, flags::SYN).build())?;
        let seen = Seen::new(&syn.frame);
        let mut backends =
            BACKENDS.into_iter().filter(|index| backend_address(*index) == seen.destination);
        let backend = backends.next().context("its backend")?;
        kernel.run(&crowd::answer(backend, seen.source).build())?;
        kernel.run(&crowd::segment(VIP, number, flags::ACK).build())?;
    }
    let pins = kernel.pins().directory().parent().context("a directory")?.to_path_buf();
    let mut found = Vec::new();
    for (filters, what) in [
        (&["--client", "198.18.0.3/32"][..], "50,000 of a client's"),
        (&["--state", "established", "--limit", "1000"], "the first 1,000"),
    ] {
        let mut times = Vec::new();
        for _ in 0..3 {
            let start = Instant::now();
            let mut command = Command::new(lb);
            command.arg("--pin-path").arg(&pins).args(["list", "flows", "--json"]).args(filters);
            let output = command.output()?;
            times.push(start.elapsed());
            let flows: Vec<Value> = serde_json::from_slice(&output.stdout)?;
            ensure!(!flows.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        let what = format!("lb list flows, {what} of {FLOWS}");
        found.push(Found { group: "lists", what, value: middle(times), unit: "ms" });
    }
    Ok(found)
}
