//! Frames a second through lb and through others, side by side.
//!
//! A program of ours sends the frames of one connection, which has been opened before: as short as Ethernet has them, as fast
//! as it can, all on one processor, which hands them to the balancer's interface, does the balancer's work and hands them to
//! the backend's interface, where they are counted and end. All processes run there as well, so that no other
//! processor takes part. So two connections' frames are sent as well, each by a processor of its own, to interfaces that have
//! one queue, which both share, or two. In each round every system is set up, measured and removed again, in the one order and then in
//! the other. What counts of each is the best of its bursts, since whoever else has the processor's other thread or its caches only makes
//! it slower: systems are compared within each round, and the ratio in the middle of all rounds is shown.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;

use super::{
    Programs,
    bed::Bed,
    interruption,
    report::{Bar, Report, median, number},
    senders::Senders,
    systems::{Running, System},
};
use crate::wait::wait_within;

/// What is measured.
#[derive(Clone, Copy)]
struct Setting {
    system: System,
    /// How many processors send frames, each those of a connection of its own.
    processors: usize,
    /// How many queues each interface has.
    queues: usize,
}

/// One processor.
pub(super) const SYSTEMS: [System; 7] = [
    System::Redirect,
    System::Lb("full-nat"),
    System::Lb("nat"),
    System::Lb("dsr"),
    System::Lb("ipip"),
    System::Routing,
    System::Nftables,
];
/// Two of them.
const SCALED: [System; 3] = [System::Redirect, System::Lb("full-nat"), System::Lb("dsr")];

impl Setting {
    fn all() -> impl Iterator<Item = Self> {
        let one = SYSTEMS.map(|system| Self { system, processors: 1, queues: 1 });
        let two = [1, 2].map(|queues| SCALED.map(|system| Self { system, processors: 2, queues }));
        one.into_iter().chain(two.into_iter().flatten())
    }

    fn name(&self) -> String {
        let system = self.system.name();
        match (self.processors, self.queues) {
            (1, _) => system,
            (_, 1) => format!("{system}, two processors, one queue"),
            _ => format!("{system}, two processors, two queues"),
        }
    }

    fn group(&self) -> &'static str {
        match self.processors {
            1 => "frames of 64 bytes, one connection, one processor",
            _ => "frames of 64 bytes, two connections, two processors",
        }
    }
}

/// Rounds, bursts of a round, and frames of a burst.
const ROUNDS: usize = 8;
const BURSTS: usize = 4;
const FRAMES: u32 = 500_000;

/// What was found of a burst.
#[derive(Clone, Copy, Debug)]
struct Burst {
    /// Millions of frames that arrived in a second.
    rate: f64,
    /// The part of the frames that didn't arrive.
    lost: f64,
}

/// Measures every system whose name has that in it.
///
/// # Errors
///
/// A system doesn't start.
pub fn report(programs: &Programs, only: &str) -> Result<Report> {
    let bed = Bed::new()?;
    let mut settings: Vec<Setting> =
        Setting::all().filter(|setting| setting.name().contains(only)).collect();
    let shown = settings.clone();
    let mut found: BTreeMap<String, Vec<Burst>> = BTreeMap::new();
    for round in 0..ROUNDS {
        for setting in &settings {
            interruption::demand_none()?;
            let name = setting.name();
            bed.set_queues(setting.queues)?;
            let running = setting.system.set_up(&bed, programs)?;
            let bursts = measure(&bed, *setting, &running);
            running.remove(&bed)?;
            found.entry(name.clone()).or_default().extend(bursts.context(name.clone())?);
            eprintln!("round {} of {ROUNDS}: {name}", round + 1);
        }
        settings.reverse();
    }
    // The burst that so many percent of all were no better than.
    let quantile = |name: &String, value: fn(&Burst) -> f64, percent: usize| {
        let mut values: Vec<f64> =
            found.get(name).map_or(&[][..], Vec::as_slice).iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() * percent / 100).copied().unwrap_or(f64::NAN)
    };
    let rate = |name: &String| quantile(name, |burst| burst.rate, 90);
    let row = |setting: &Setting| {
        let name = &setting.name();
        let lost = quantile(name, |burst| burst.lost, 50);
        let against = |system: System| {
            let ratio = compare(found.get(name), found.get(&Setting { system, ..*setting }.name()));
            ratio.map_or_else(String::new, number)
        };
        let numbers = [
            number(quantile(name, |burst| burst.rate, 50)),
            number(rate(name)),
            against(System::Redirect),
            against(System::Nftables),
            format!("{:.2}%", lost * 100.0),
        ];
        [name.clone()].into_iter().chain(numbers).collect()
    };
    let result = |setting: &Setting| {
        let name = setting.name();
        let bursts = found.get(&name).map_or(&[][..], Vec::as_slice);
        let all = |value: fn(&Burst) -> f64| bursts.iter().map(value).collect::<Vec<f64>>();
        let (rates, lost) = (all(|burst| burst.rate), all(|burst| burst.lost));
        json!({ "system": name, "million_frames_a_second": rates, "lost": lost })
    };
    let bar = |setting: &Setting| Bar {
        group: setting.group().to_owned(),
        label: setting.name(),
        value: rate(&setting.name()),
    };
    Ok(Report {
        name: "rate",
        title: "Frames a second".to_owned(),
        unit: "millions",
        bars: shown.iter().map(bar).collect(),
        scaled_by_group: true,
        headings: vec![
            "system",
            "Mpps, median",
            "Mpps, best tenth",
            "× XDP redirect",
            "× nftables",
            "lost",
        ],
        rows: shown.iter().map(row).collect(),
        results: shown.iter().map(result).collect(),
    })
}

/// How many times another system's rate one is, by the best bursts of each round: in the middle of all rounds.
fn compare(one: Option<&Vec<Burst>>, other: Option<&Vec<Burst>>) -> Option<f64> {
    let best = |bursts: &[Burst]| bursts.iter().map(|burst| burst.rate).fold(0.0, f64::max);
    let rounds = one?.chunks(BURSTS).zip(other?.chunks(BURSTS));
    median(rounds.map(|(one, other)| best(one) / best(other)))
}

fn measure(bed: &Bed, setting: Setting, running: &Running) -> Result<Vec<Burst>> {
    let Setting { system, processors, .. } = setting;
    let mut senders = Senders::new(bed, system, running, processors)?;
    let places: Vec<usize> =
        if processors == 1 { vec![bed.gather()?] } else { (0..processors).collect() };
    let frames = FRAMES / processors as u32;
    let mut bursts = Vec::new();
    while bursts.len() < BURSTS {
        let are_steady = senders.are_steady();
        let before = senders.arrived(running)?;
        let longest = senders.send(frames, &places)?;
        let sent = u64::from(frames) * processors as u64;
        let arrived = || -> Result<u64> { Ok(senders.arrived(running)? - before) };
        // Where some were lost, all will never be there.
        let _: Result<()> =
            wait_within(Duration::from_millis(500), "all arrive", || Ok(arrived()? >= sent));
        let arrived = arrived()? as f64;
        if are_steady {
            let lost = 1.0 - arrived / sent as f64;
            bursts.push(Burst { rate: arrived / longest.as_secs_f64() / 1e6, lost });
        }
    }
    Ok(bursts)
}
