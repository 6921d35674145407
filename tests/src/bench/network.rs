//! Requests through lb and through others, side by side.
//!
//! In each round every system is set up, measured and removed again, in the one order and then in the other. What the
//! balancer takes for a request is measured with its interfaces' work in threads: those and its processes run on one
//! processor, everything else on the other. Requests a second, latency and bulk are measured without that. Systems are compared
//! within each round, since others use the machine as well.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::json;

use super::{
    Programs,
    bed::Bed,
    interruption,
    report::{Bar, Report, median, number},
    systems::System,
};

/// What is measured of a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Quantity {
    /// Processor time of the balancer for a request over a connection that stays, in microseconds.
    KeptAlive,
    /// The same for a connection with one request.
    Connection,
    /// Requests a second over connections that stay.
    Rate,
    /// Their latency: half of them, 99% and 99.9% took no longer, in microseconds.
    Half,
    Most,
    NearlyAll,
    /// New connections a second, with one request each.
    Connections,
    /// Gigabits a second of large answers.
    Bulk,
}

impl Quantity {
    const ALL: [(Self, &'static str); 8] = [
        (Self::KeptAlive, "CPU µs/request, keep-alive"),
        (Self::Connection, "CPU µs/request, connection each"),
        (Self::Rate, "requests/s"),
        (Self::Half, "p50 µs"),
        (Self::Most, "p99 µs"),
        (Self::NearlyAll, "p99.9 µs"),
        (Self::Connections, "connections/s"),
        (Self::Bulk, "bulk Gbit/s"),
    ];
}

/// What is shown as a multiple of what another system has.
const COMPARED: [(Quantity, System, &str); 4] = [
    (Quantity::KeptAlive, System::Routing, "CPU × plain routing, keep-alive"),
    (Quantity::Connection, System::Routing, "CPU × plain routing, connection each"),
    (Quantity::Rate, System::Redirect, "requests/s × XDP redirect"),
    (Quantity::Most, System::Redirect, "p99 × XDP redirect"),
];

/// Rounds, those of them in which new connections and bulk are measured as well, and how long each load lasts, as wrk is told.
const ROUNDS: usize = 9;
const WHOLE_ROUNDS: usize = 3;
const DURATION: &str = "-d2s";
const FEW: &str = "-c16";
const CLOSE: &str = "Connection: close";

/// Measures everything.
///
/// # Errors
///
/// A system doesn't start, or a request fails.
pub fn report(programs: &Programs, only: &str) -> Result<Report> {
    let bed = Bed::new()?;
    let mut systems: Vec<System> =
        System::ALL.into_iter().filter(|system| system.name().contains(only)).collect();
    let names: Vec<String> = systems.iter().map(|system| system.name()).collect();
    let mut found: BTreeMap<(String, Quantity), Vec<f64>> = BTreeMap::new();
    for round in 0..ROUNDS {
        for system in &systems {
            interruption::demand_none()?;
            let name = system.name();
            let running = system.set_up(&bed, programs)?;
            let result = measure(&bed, system.address(), round < WHOLE_ROUNDS);
            running.remove(&bed)?;
            for (quantity, value) in result.with_context(|| name.clone())? {
                found.entry((name.clone(), quantity)).or_default().push(value);
            }
            eprintln!("round {} of {ROUNDS}: {name}", round + 1);
        }
        systems.reverse();
    }
    let rounds = |name: &String, quantity| {
        found.get(&(name.clone(), quantity)).map_or(&[][..], Vec::as_slice).iter().copied()
    };
    let middle = |name: &String, quantity| median(rounds(name, quantity)).unwrap_or(f64::NAN);
    let against = |name: &String, quantity, other: System| {
        let both = rounds(name, quantity).zip(rounds(&other.name(), quantity).collect::<Vec<_>>());
        median(both.map(|(one, other)| one / other)).map_or_else(String::new, number)
    };
    let row = |name: &String| {
        let values = Quantity::ALL.map(|(quantity, _)| number(middle(name, quantity)));
        let ratios = COMPARED.map(|(quantity, other, _)| against(name, quantity, other));
        [name.clone()].into_iter().chain(ratios).chain(values).collect()
    };
    let result = |((name, quantity), values): (&(String, Quantity), &Vec<f64>)| {
        let label =
            Quantity::ALL.into_iter().find(|(one, _)| one == quantity).map(|(_, label)| label);
        json!({ "system": name, "what": label, "rounds": values })
    };
    let bars = [Quantity::KeptAlive, Quantity::Connection].into_iter().flat_map(|quantity| {
        let group = if quantity == Quantity::KeptAlive {
            "a request over a connection that stays"
        } else {
            "a connection with one request"
        };
        let bar = move |name: &String| (group, name.clone(), quantity);
        names.iter().map(bar).collect::<Vec<_>>()
    });
    let bars = bars
        .map(|(group, label, quantity)| {
            let value = middle(&label, quantity);
            Bar { group: group.to_owned(), label, value }
        })
        .collect();
    let compared = COMPARED.into_iter().map(|(.., label)| label);
    let headings = compared.chain(Quantity::ALL.map(|(_, label)| label));
    Ok(Report {
        name: "network",
        title: "Processor time of the balancer for a request".to_owned(),
        unit: "microseconds",
        bars,
        scaled_by_group: true,
        headings: ["system"].into_iter().chain(headings).collect(),
        rows: names.iter().map(row).collect(),
        results: found.iter().map(result).collect(),
    })
}

fn measure(bed: &Bed, address: &str, is_whole: bool) -> Result<Vec<(Quantity, f64)>> {
    let url = format!("http://{address}/client/");
    let mut found = Vec::new();
    bed.thread_interfaces(true)?;
    bed.pin()?;
    for (quantity, more) in [(Quantity::KeptAlive, None), (Quantity::Connection, Some(CLOSE))] {
        let mut arguments = vec![DURATION, FEW];
        arguments.extend(more.iter().flat_map(|header| ["-H", header]));
        let before = bed.processor_time()?;
        let load = bed.load(&url, &arguments, true)?;
        let time = bed.processor_time()? - before;
        load.demand_no_errors()?;
        found.push((quantity, time as f64 / 1000.0 / load.requests as f64));
    }
    bed.thread_interfaces(false)?;
    bed.unpin()?;
    let load = bed.load(&url, &[DURATION, FEW], false)?;
    load.demand_no_errors()?;
    found.push((Quantity::Rate, load.requests as f64 / load.seconds));
    let [half, most, nearly_all] = load.latency.map(|microseconds| microseconds as f64);
    found.extend([
        (Quantity::Half, half),
        (Quantity::Most, most),
        (Quantity::NearlyAll, nearly_all),
    ]);
    if !is_whole {
        return Ok(found);
    }
    let load = bed.load(&url, &[DURATION, FEW, "-H", CLOSE], false)?;
    load.demand_no_errors()?;
    found.push((Quantity::Connections, load.requests as f64 / load.seconds));
    let load = bed.load(&format!("http://{address}/big"), &["-d1s", "-c2"], false)?;
    found.push((Quantity::Bulk, load.bytes as f64 * 8.0 / load.seconds / 1e9));
    Ok(found)
}
