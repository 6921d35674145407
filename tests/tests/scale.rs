//! Many backends: each is checked whenever it is due, and a change among them is quick and disturbs nobody.
//!
//! `LB_SCALE_BACKENDS` sets how many are checked (default: 1,000), and `LB_SCALE_SERVICES` how many services of a hundred
//! backends are reloaded (default: 100).

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_tests::{
    many::{
        INTERVAL, OF_A_SERVICE, answer_checks, bed, processor_time, services, start_on_one_cpu,
    },
    setting, under_traffic,
    wait::wait_until,
};

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");
/// Each test has the machine for itself, as far as the other is concerned.
static TURN: Mutex<()> = Mutex::new(());
/// How many intervals are watched.
const ROUNDS: u32 = 5;

#[test]
fn many_backends_are_each_checked_when_due() -> Result<()> {
    let count: usize = setting("LB_SCALE_BACKENDS", 1000);
    let _turn = TURN.lock();
    let over = Arc::new(AtomicBool::new(false));
    let mut bed = bed(LB)?;
    let seen = answer_checks(bed.backend_namespace("mgmt01")?, &over)?;
    start_on_one_cpu(&mut bed, LB, count)?;

    // One round more: in the first one they find their places.
    let process = bed.controller_pid()?;
    let start = Instant::now() + INTERVAL;
    thread::sleep(INTERVAL);
    let before = processor_time(process)?;
    let end = start + INTERVAL * ROUNDS;
    wait_until("the last round is over", || {
        let seen = seen.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
        Ok(seen.last().is_some_and(|(when, _)| *when >= end))
    })?;
    let used = processor_time(process)? - before;
    let watched = start.elapsed();
    let seen = std::mem::take(&mut *seen.lock().map_err(|_| anyhow::anyhow!("poisoned"))?);
    over.store(true, Ordering::Relaxed);

    let mut checks: HashMap<IpAddr, Vec<Instant>> = HashMap::new();
    let tenth = INTERVAL / 20;
    let mut tenths = vec![0u32; (ROUNDS * 20) as usize];
    for (when, ip) in seen.into_iter().filter(|(when, _)| (start..end).contains(when)) {
        checks.entry(ip).or_default().push(when);
        tenths[((when - start).as_nanos() / tenth.as_nanos()) as usize] += 1;
    }
    ensure!(checks.len() == count, "{} of {count} were checked", checks.len());
    let gaps = checks.values().flat_map(|times| times.windows(2).map(|pair| pair[1] - pair[0]));
    let (longest, shortest) = gaps
        .fold((Duration::ZERO, Duration::MAX), |(longest, shortest), gap| {
            (longest.max(gap), shortest.min(gap))
        });
    let total: u32 = tenths.iter().sum();
    let mean = f64::from(total) / tenths.len() as f64;
    let busiest = tenths.iter().max().context("no time")?;
    println!(
        "{count} backends, {total} checks in {ROUNDS} intervals of {INTERVAL:?}: {shortest:?} to {longest:?} apart; \
         {busiest} in the busiest {tenth:?}, {mean:.0} on average; {:.0}% of one CPU, {} MB",
        used.as_secs_f64() / watched.as_secs_f64() * 100.0,
        bed.controller_memory()? / 1024
    );
    // Twice as long would mean one was left out.
    ensure!(longest < INTERVAL * 2, "an interval was missed: {longest:?}");
    ensure!(total as usize >= count * (ROUNDS as usize - 1), "{total} checks");
    ensure!(f64::from(*busiest) < mean * 4.0 + 20.0, "not spread evenly: {tenths:?}");
    Ok(())
}

#[test]
fn many_services_are_reloaded_without_a_gap() -> Result<()> {
    let count: usize = setting("LB_SCALE_SERVICES", 100);
    let _turn = TURN.lock();
    let mut bed = bed(LB)?;
    let many = services(count, OF_A_SERVICE, "type = \"none\"");
    bed.write_config(&many)?;
    let start = Instant::now();
    bed.start_controller(&[])?;
    println!("{count} services of {OF_A_SERVICE}: started after {:?}", start.elapsed());
    bed.wait_for_up(1)?;
    let result = under_traffic(&mut bed, |bed| {
        let weight = many.replacen("name = \"b7\"\n", "name = \"b7\"\nweight = 2\n", 1);
        let fewer = services(count - 1, OF_A_SERVICE, "type = \"none\"");
        for (what, text) in [
            ("nothing", &many),
            ("a weight", &weight),
            ("a service less", &fewer),
            ("and again", &many),
        ] {
            bed.write_config(text)?;
            let start = Instant::now();
            let said = bed.lb_ok(&["reload"])?;
            println!(
                "reload ({what}): {:?}, {}",
                start.elapsed(),
                said.lines().next().unwrap_or("")
            );
            ensure!(said.contains("reloaded") || said.contains("nothing"), "{said}");
        }
        Ok(())
    });
    println!("{} MB", bed.controller_memory()? / 1024);
    result.map(drop)
}
