//! Nanoseconds of the loaded program for one packet, of many flows in turn.
//!
//! A program of ours makes a frame and calls lb's by a tail call, again and again (`BPF_PROG_TEST_RUN`); what it takes
//! with a program that does nothing is subtracted. Beside each case stands a yardstick, since processors differ and are
//! shared: the least that forwarding can be, an outer header put before any packet. All three are measured in turn, in many
//! short rounds. Whoever else has the processor's other thread or its caches makes all of a round slower: what counts is the
//! ratio within a round, in the middle of all rounds. What each packet met is compared with what it should.

use std::net::IpAddr;

use anyhow::{Context, Result};
use fastrand::Rng;
use lb_common::{
    abi::Forwarding,
    datapath::{LEAST_TRACED_AGE, trace_sets},
};
use lb_userspace::dataplane;
use serde_json::json;

use super::{
    cases::{Case, MOST_FLOWS, Packets, cases, service_of},
    interruption,
    report::{Bar, Report, number},
};
use crate::{
    crowd,
    frame::{Segment, flags},
    kernel::Kernel,
    repeat::{Repeater, Yardstick},
    seen::Seen,
    world::{
        BACKENDS, BACKENDS_IPV6, OTHER_FORWARDINGS, Socket, VIP, VIP_IPV6, World, backend_address,
    },
};

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// The program's part: median of the rounds, in nanoseconds a packet.
    pub median: f64,
    /// What the best tenth of the rounds took at most.
    pub best: f64,
    /// The same of the yardstick.
    pub yardstick: f64,
    /// How many times what the yardstick takes it is: median of the rounds' ratios.
    pub ratio: f64,
}

/// Rounds. Whoever shares the processor often does so for a second at a time.
const ROUNDS: u32 = 81;
/// The same of first packets, of which there aren't so many, and of so many flows that a round takes long.
const FEW_ROUNDS: u32 = 41;
/// Packets of one round, at least. Every flow has a turn before it, as in a stream: meanwhile, others have used the caches, and time has gone by.
const SAMPLE: u32 = 25_000;
/// Most packets of one of many rounds.
const LARGE_SAMPLE: u32 = 200_000;

/// Loads lb's program and what it is measured with.
pub struct Bench {
    world: World,
    kernel: Kernel,
    repeater: Repeater,
}

impl Bench {
    /// Ready to measure.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn new() -> Result<Self> {
        let mut world = crowd::world(MOST_FLOWS);
        // As by default.
        (world.flows, world.embryonic) = (1_048_576, 262_144);
        world.settings.replies_anywhere = 0;
        world.settings.beat_shift = dataplane::beat_shift();
        // All by one interface, so that all is sent back by it.
        let first = world.backends[0].next_hop;
        for backend in &mut world.backends[..BACKENDS.len()] {
            (backend.next_hop.interface, backend.next_hop.own) = (first.interface, first.own);
        }
        for case in cases().iter().filter(|case| case.services > 1) {
            let first = case.service();
            let same = world.services.iter().find(|(address, _)| *address == first);
            let (_, service) = *same.context("the first service")?;
            let others = 1..case.services;
            let others = others.map(|number| service_of(first, number, case.services));
            world.services.extend(others.map(|address| (address, service)));
        }
        let kernel = Kernel::new(&world)?;
        Ok(Self { world, kernel, repeater: Repeater::new(MOST_FLOWS)? })
    }

    /// Measures everything whose name has that in it.
    ///
    /// # Errors
    ///
    /// As of [`Self::measure`].
    pub fn report(&mut self, only: &str) -> Result<Report> {
        let mut found = Vec::new();
        for case in cases().into_iter().filter(|case| case.to_string().contains(only)) {
            let measured = self.measure(case)?;
            eprintln!("{case}: {}", number(measured.best));
            found.push((case.to_string(), measured));
        }
        let columns = |(name, measured): &(String, Measured)| {
            let Measured { median, best, yardstick, ratio } = *measured;
            let numbers = [median, best, yardstick, ratio].map(number);
            [name.clone()].into_iter().chain(numbers).collect()
        };
        let result = |(name, measured): &(String, Measured)| {
            json!({
                "what": name,
                "median_ns": measured.median,
                "best_tenth_ns": measured.best,
                "yardstick_ns": measured.yardstick,
                "median_ratio": measured.ratio,
            })
        };
        let bar = |(name, measured): &(String, Measured)| {
            let (group, label) = name.split_once(": ").unwrap_or((name, ""));
            Bar { group: group.to_owned(), label: label.to_owned(), value: measured.ratio }
        };
        Ok(Report {
            name: "packets",
            title: "What lb's program takes for one packet".to_owned(),
            unit: "as a multiple of the least that forwarding can be",
            bars: found.iter().map(bar).collect(),
            scaled_by_group: false,
            headings: vec![
                "packet",
                "ns, median",
                "ns, best tenth",
                "yardstick, ns",
                "× yardstick",
            ],
            rows: found.iter().map(columns).collect(),
            results: found.iter().map(result).collect(),
        })
    }

    /// Measures a case.
    ///
    /// # Errors
    ///
    /// The kernel refuses, or a packet met another fate than it should.
    fn measure(&mut self, case: Case) -> Result<Measured> {
        // As the controller sets it.
        let mask = trace_sets(case.flows, 0) - 1;
        (self.world.settings.trace_mask, self.world.settings.nat_trace_mask) = (mask, mask);
        self.kernel.reset(&self.world)?;
        // Those of the case before would take places.
        self.kernel.forget_traces();
        let vip = case.service();
        let mut frames: Vec<Vec<u8>> = match case.packets {
            Packets::Reply => self.open(vip, case)?.into_iter().map(|(_, reply)| reply).collect(),
            _ if case.is_new() || case.packets == Packets::NotOurs => (0..case.flows)
                .map(|number| frame(crowd::segment(vip, number, flags::SYN)))
                .collect(),
            _ => self.open(vip, case)?.into_iter().map(|(frame, _)| frame).collect(),
        };
        // As of most packets: what is measured are flows that have lasted.
        self.kernel.age_flows(LEAST_TRACED_AGE)?;
        Rng::with_seed(1).shuffle(&mut frames);
        self.repeater.set_frames(frames.into_iter())?;
        if let (IpAddr::V4(address), port) = vip {
            self.repeater.balance(address, port)?;
        }
        self.kernel.recount()?;
        let program = self.kernel.program()?;
        let aim = |repeater: &mut Repeater| match case.packets {
            Packets::Least(yardstick) => repeater.aim_at(yardstick),
            _ => repeater.aim(&program),
        };
        let sample = SAMPLE.max(case.flows);
        let turn = if case.is_new() { 0 } else { case.flows };
        let (count, sample) = match sample {
            _ if case.is_new() => (FEW_ROUNDS, case.flows / FEW_ROUNDS),
            LARGE_SAMPLE.. => (FEW_ROUNDS, sample),
            _ => (ROUNDS, sample),
        };
        let mut rounds = Vec::new();
        let mut sent = 0;
        if !case.is_new() {
            aim(&mut self.repeater)?;
            let all = case.flows.max(sample);
            self.repeater.run(all)?;
            sent += all;
        }
        for _ in 0..count {
            interruption::demand_none()?;
            // New flows come once, in their order: what isn't measured uses others.
            let start = self.repeater.next()?;
            let mut taken = [0.0; 3];
            for (yardstick, taken) in
                [Yardstick::Nothing, Yardstick::Encapsulate].into_iter().zip(&mut taken)
            {
                self.repeater.aim_at(yardstick)?;
                // They change nothing, and may run longer than what does.
                *taken = self.repeater.run_after(turn, sample.max(SAMPLE))?;
                self.repeater.set_next(start)?;
            }
            aim(&mut self.repeater)?;
            taken[2] = self.repeater.run_after(turn, sample)?;
            rounds.push(taken);
            sent += turn + sample;
        }
        let ours = if matches!(case.packets, Packets::Least(_)) { 0 } else { sent.into() };
        self.kernel.confirm_many(case.reason(), ours).with_context(|| format!("{case:?}"))?;
        Ok(evaluate(&rounds))
    }

    /// Opens flows, and returns what each sends next in both directions.
    fn open(&mut self, first: Socket, case: Case) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut frames = Vec::new();
        for number in 0..case.flows {
            let vip = service_of(first, number, case.services);
            let syn = frame(crowd::segment(vip, number, flags::SYN));
            let outcome = self.kernel.run(&syn)?;
            let mut reply = Vec::new();
            if [VIP, VIP_IPV6].contains(&first) {
                let seen = Seen::new(&outcome.frame);
                let all = BACKENDS.into_iter().chain(BACKENDS_IPV6);
                let mut backends = all.filter(|index| backend_address(*index) == seen.destination);
                let backend = backends.next().context("its backend")?;
                let mut answer = crowd::answer(backend, seen.source);
                self.kernel.run(&answer.build())?;
                answer.source_mac = [0x02, 0, 0, 0, 1, 0];
                answer.sequence += 1;
                reply = frame(answer.with_flags(flags::ACK));
            } else if let (_, _, backend) = other(first)?
                && self.sees_replies(backend)
            {
                let mut answer = crowd::answer(backend, crowd::client(vip.0.is_ipv6(), number));
                self.kernel.run(&answer.build())?;
                answer.sequence += 1;
                reply = frame(answer.with_flags(flags::ACK));
            }
            let hit = frame(crowd::segment(vip, number, flags::ACK));
            self.kernel.run(&hit)?;
            frames.push((hit, reply));
        }
        Ok(frames)
    }

    fn sees_replies(&self, backend: u32) -> bool {
        self.world.backends[backend as usize - 1].forwarding.sees_replies()
    }
}

fn other(vip: Socket) -> Result<(Forwarding, Socket, u32)> {
    OTHER_FORWARDINGS.into_iter().find(|(_, other, _)| *other == vip).context("a service")
}

/// As short as an Ethernet frame may be, or as our template.
fn frame(mut segment: Segment) -> Vec<u8> {
    segment.payload = vec![0; if segment.source.is_ipv4() { 26 } else { 6 }];
    segment.build()
}

/// Of the program that does nothing, of the yardstick and of lb, by rounds, in nanoseconds.
fn evaluate(rounds: &[[f64; 3]]) -> Measured {
    let sorted = |column: usize| {
        let mut times: Vec<f64> = rounds.iter().map(|round| round[column]).collect();
        times.sort_by(f64::total_cmp);
        times
    };
    let [floor, yardstick, taken] = [0, 1, 2].map(sorted);
    let mut ratios: Vec<f64> = rounds
        .iter()
        .filter(|[floor, yardstick, _]| yardstick > floor)
        .map(|[floor, yardstick, taken]| (taken - floor) / (yardstick - floor))
        .collect();
    ratios.sort_by(f64::total_cmp);
    let tenth = |times: &[f64]| times[times.len() / 10];
    let middle = |times: &[f64]| times[times.len() / 2];
    Measured {
        median: middle(&taken) - middle(&floor),
        best: tenth(&taken) - tenth(&floor),
        yardstick: tenth(&yardstick) - tenth(&floor),
        ratio: ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN),
    }
}
