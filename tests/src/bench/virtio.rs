//! Frames a second through lb and through others in a guest, whose interfaces hand programs the frames as they came.
//!
//! The frames of one connection, or of two, wait for the guest in its interface's queue, or in two; how fast it takes them, forwards
//! them and hands them on is what is measured, and how much of its processors' time that takes. Nobody sends meanwhile. Since QEMU
//! executes the guest's instructions in software, and its one thread for devices copies each frame twice, only ratios within one run
//! say something.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    Programs,
    bed::Bed,
    interruption,
    rate::SYSTEMS,
    report::{Bar, Report, number},
    senders::Senders,
    systems::{Running, System},
};

/// How many queues frames come by.
const QUEUES: [usize; 2] = [1, 2];
/// Rounds, bursts of a round, and frames of a burst in each queue, which has room for them.
const ROUNDS: usize = 3;
const BURSTS: usize = 8;
const FRAMES: u32 = 30_000;
/// When no more frames will come.
const SILENCE: Duration = Duration::from_millis(500);

/// What was found of a burst.
#[derive(Clone, Copy, Debug)]
struct Burst {
    /// Thousands of frames that arrived in a second.
    rate: f64,
    /// What the guest's processors took for a frame, in microseconds.
    taken: f64,
    /// How many of them were at work.
    busy: f64,
    /// The part of the frames that didn't arrive.
    lost: f64,
}

/// Measures every system whose name has that in it.
///
/// # Errors
///
/// The guest or a system doesn't start.
pub fn report(programs: &Programs, only: &str) -> Result<Report> {
    let bed = Bed::with_guest(&[&programs.lb, &programs.redirector])?;
    let mut systems: Vec<System> =
        SYSTEMS.into_iter().filter(|system| system.name().contains(only)).collect();
    let names: Vec<String> = systems.iter().map(|system| system.name()).collect();
    let mut found: BTreeMap<(String, usize), Vec<Burst>> = BTreeMap::new();
    for round in 0..ROUNDS {
        for system in &systems {
            interruption::demand_none()?;
            let name = system.name();
            let running = system
                .set_up(&bed, programs)
                .with_context(|| format!("{name}: {}", bed.last_words()))?;
            let bursts = measure(&bed, *system, &running);
            let removed = running.remove(&bed);
            for (queues, burst) in bursts.with_context(|| name.clone())? {
                found.entry((name.clone(), queues)).or_default().push(burst);
            }
            removed?;
            eprintln!("round {} of {ROUNDS}: {name}", round + 1);
        }
        systems.reverse();
    }
    let sorted = |name: &str, queues: usize, value: fn(&Burst) -> f64| {
        let bursts = found.get(&(name.to_owned(), queues)).map_or(&[][..], Vec::as_slice);
        let mut values: Vec<f64> = bursts.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let middle = |name: &str, queues, value| {
        let values = sorted(name, queues, value);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let redirect = System::Redirect.name();
    let row = |(name, queues): (&String, usize)| {
        let against = |value| {
            let ratio = middle(name, queues, value) / middle(&redirect, queues, value);
            if ratio.is_nan() { String::new() } else { number(ratio) }
        };
        let worst = sorted(name, queues, |burst| burst.lost).last().copied().unwrap_or(f64::NAN);
        vec![
            name.clone(),
            queues.to_string(),
            number(middle(name, queues, |burst| burst.rate)),
            against(|burst: &Burst| burst.rate),
            number(middle(name, queues, |burst| burst.taken)),
            against(|burst: &Burst| burst.taken),
            number(middle(name, queues, |burst| burst.busy)),
            format!("{:.2}%", worst * 100.0),
        ]
    };
    let all = QUEUES.into_iter().flat_map(|queues| names.iter().map(move |name| (name, queues)));
    let kernel = bed.at_balancer("uname", &["-r"])?;
    let result = |((name, queues), bursts): (&(String, usize), &Vec<Burst>)| {
        let all = |value: fn(&Burst) -> f64| bursts.iter().map(value).collect::<Vec<f64>>();
        json!({
            "system": name,
            "queues": queues,
            "thousand_frames_a_second": all(|burst| burst.rate),
            "processor_microseconds_a_frame": all(|burst| burst.taken),
            "processors_busy": all(|burst| burst.busy),
            "lost": all(|burst| burst.lost),
        })
    };
    let bar = |(name, queues): (&String, usize)| Bar {
        group: format!("frames of 64 bytes, by {queues} of the interface's queues"),
        label: name.clone(),
        value: middle(name, queues, |burst| burst.rate),
    };
    Ok(Report {
        name: "guest",
        title: format!(
            "Frames a second through a guest executed in software (Linux {})",
            kernel.trim()
        ),
        unit: "thousands",
        bars: all.clone().map(bar).collect(),
        scaled_by_group: false,
        headings: vec![
            "system",
            "queues",
            "kpps",
            "× XDP redirect",
            "CPU µs/frame",
            "× XDP redirect",
            "CPUs busy",
            "lost at worst",
        ],
        rows: all.map(row).collect(),
        results: found.iter().map(result).collect(),
    })
}

fn measure(bed: &Bed, system: System, running: &Running) -> Result<Vec<(usize, Burst)>> {
    let mut senders = Senders::new(bed, system, running, QUEUES.len())?;
    let mut bursts = Vec::new();
    while bursts.len() < BURSTS * QUEUES.len() {
        let are_steady = senders.are_steady();
        for queues in QUEUES {
            // The processor that sends says which queue.
            let processors: Vec<usize> = (0..queues).collect();
            let before = senders.arrived(running)?;
            senders.send(FRAMES, &processors)?;
            let start = Instant::now();
            let (early, idle) = (senders.arrived(running)?, bed.processor_time()?);
            let sent = u64::from(FRAMES) * queues as u64;
            let (mut last, mut at, mut busy) = (early, start, idle);
            while last - before < sent && at.elapsed() < SILENCE {
                thread::sleep(Duration::from_millis(1));
                let arrived = senders.arrived(running)?;
                if arrived > last {
                    (last, at, busy) = (arrived, Instant::now(), bed.processor_time()?);
                }
            }
            let waited = last - early;
            ensure!(waited > sent / 4, "{waited} of {sent} frames came after all had been sent");
            if are_steady {
                let (taken, elapsed) = ((busy - idle) as f64, (at - start).as_secs_f64());
                let found = Burst {
                    rate: waited as f64 / elapsed / 1e3,
                    taken: taken / waited as f64 / 1e3,
                    busy: taken / elapsed / 1e9,
                    lost: 1.0 - (last - before) as f64 / sent as f64,
                };
                bursts.push((queues, found));
            }
        }
    }
    Ok(bursts)
}
