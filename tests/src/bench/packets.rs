//! Nanoseconds of the loaded program for one packet, of many flows in turn.
//!
//! A program of ours makes a frame and calls lb's by a tail call, again and again (`BPF_PROG_TEST_RUN`); what it takes
//! with a program that does nothing is subtracted. Beside each case stands a yardstick, since processors differ and are
//! shared: the least that forwarding can be, an outer header put before any packet. All three are measured in turn, in many
//! short rounds, and what counts of each is the best tenth of them: whoever else has the processor's other thread or its
//! caches only makes it slower. What each packet met is compared with what it should.

use std::fmt;

use anyhow::{Context, Result};
use fastrand::Rng;
use lb_common::{
    abi::Forwarding,
    datapath::{LEAST_COPIED_AGE, Reason, trace_places},
};
use serde_json::json;

use super::report::{Bar, Report, number};
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

/// Which packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packets {
    /// From clients, in established flows.
    Hit,
    /// From backends, in established flows.
    Reply,
    /// The first of a flow.
    New,
    /// For no service and no flow.
    NotOurs,
    /// As [`Packets::Hit`], but for a program that only looks at one word of the flow's, in 4 MB.
    Look,
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// How the service forwards.
    pub forwarding: Forwarding,
    /// Whether it is one on IPv6.
    pub is_ipv6: bool,
    /// Which packets.
    pub packets: Packets,
    /// Of how many flows, in turn.
    pub flows: u32,
}

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// The program's part: median of the rounds, in nanoseconds a packet.
    pub median: f64,
    /// What the best tenth of the rounds took at most.
    pub best: f64,
    /// The same of the yardstick.
    pub yardstick: f64,
}

/// Most flows.
const MOST_FLOWS: u32 = 524_288;
/// How many there are in turn.
const FLOWS: [u32; 4] = [1, 1024, 65_536, MOST_FLOWS];
const NEW_FLOWS: u32 = 220_000;
const ROUNDS: u32 = 41;
/// Packets of one round.
const SAMPLE: u32 = 25_000;

impl Case {
    /// The service that it is about.
    fn service(self) -> Socket {
        if self.packets == Packets::NotOurs {
            let (address, _) = if self.is_ipv6 { VIP_IPV6 } else { VIP };
            return (address, 22);
        }
        if self.forwarding == Forwarding::FullNat {
            return if self.is_ipv6 { VIP_IPV6 } else { VIP };
        }
        let matches = |(forwarding, vip, backend): &(Forwarding, Socket, u32)| {
            *forwarding == self.forwarding
                && vip.0.is_ipv6() == self.is_ipv6
                && backend_address(*backend).0.is_ipv6() == self.is_ipv6
        };
        OTHER_FORWARDINGS.into_iter().find(matches).map_or(VIP, |(_, vip, _)| vip)
    }

    fn reason(self) -> Reason {
        match self.packets {
            Packets::Hit | Packets::Look => Reason::ToBackend,
            Packets::Reply => Reason::ToClient,
            Packets::New => Reason::Opened,
            Packets::NotOurs => Reason::NoService,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.is_ipv6 { "IPv6" } else { "IPv4" };
        match self.packets {
            Packets::NotOurs => return write!(formatter, "not ours: {family}"),
            Packets::Look => write!(formatter, "one look into 4 MB: {family}")?,
            Packets::Hit => write!(formatter, "{} {family}: to backends", self.forwarding.name())?,
            Packets::Reply => write!(formatter, "{} {family}: replies", self.forwarding.name())?,
            Packets::New => {
                return write!(
                    formatter,
                    "{} {family}: first packet of a flow",
                    self.forwarding.name()
                );
            }
        }
        match self.flows {
            1 => write!(formatter, ", 1 flow"),
            flows => write!(formatter, ", {flows} flows"),
        }
    }
}

/// Everything that is measured.
fn cases() -> Vec<Case> {
    let forwardings =
        [Forwarding::FullNat, Forwarding::Nat, Forwarding::Dsr, Forwarding::Ipip, Forwarding::Gue];
    let mut cases = Vec::new();
    let look =
        |flows| Case { forwarding: Forwarding::Dsr, is_ipv6: false, packets: Packets::Look, flows };
    cases.extend(FLOWS.map(look));
    for is_ipv6 in [false, true] {
        for forwarding in forwardings {
            let mut add = |packets, flows: &[u32]| {
                cases.extend(flows.iter().map(|flows| Case {
                    forwarding,
                    is_ipv6,
                    packets,
                    flows: *flows,
                }));
            };
            add(Packets::Hit, &FLOWS);
            // Of IPv6, what replies differ by isn't in the words that the frames differ by.
            if forwarding == Forwarding::FullNat && !is_ipv6 {
                add(Packets::Reply, &FLOWS);
            }
            add(Packets::New, &[NEW_FLOWS]);
        }
        cases.push(Case {
            forwarding: Forwarding::FullNat,
            is_ipv6,
            packets: Packets::NotOurs,
            flows: 1,
        });
    }
    cases
}

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
        // All by one interface, so that all is sent back by it.
        let first = world.backends[0].link;
        for backend in &mut world.backends[..BACKENDS.len()] {
            (backend.link.interface, backend.link.own) = (first.interface, first.own);
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
            let Measured { median, best, yardstick } = *measured;
            let numbers = [median, best, yardstick, best / yardstick].map(number);
            [name.clone()].into_iter().chain(numbers).collect()
        };
        let result = |(name, measured): &(String, Measured)| {
            json!({
                "what": name,
                "median_ns": measured.median,
                "best_tenth_ns": measured.best,
                "yardstick_ns": measured.yardstick,
            })
        };
        let bar = |(name, measured): &(String, Measured)| {
            let (group, label) = name.split_once(": ").unwrap_or((name, ""));
            Bar {
                group: group.to_owned(),
                label: label.to_owned(),
                value: measured.best / measured.yardstick,
            }
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
    pub fn measure(&mut self, case: Case) -> Result<Measured> {
        // As the controller sets it.
        self.world.settings.trace_mask = trace_places(case.flows, 0) - 1;
        self.kernel.reset(&self.world)?;
        let vip = case.service();
        let mut frames: Vec<Vec<u8>> = match case.packets {
            Packets::Hit | Packets::Look => {
                self.open(vip, case.flows)?.into_iter().map(|(frame, _)| frame).collect()
            }
            Packets::Reply => {
                self.open(vip, case.flows)?.into_iter().map(|(_, reply)| reply).collect()
            }
            Packets::New | Packets::NotOurs => (0..case.flows)
                .map(|number| frame(crowd::segment(vip, number, flags::SYN)))
                .collect(),
        };
        // As of most packets: what is measured are flows that have lasted.
        self.kernel.age_flows(LEAST_COPIED_AGE)?;
        Rng::with_seed(1).shuffle(&mut frames);
        self.repeater.set_frames(frames.into_iter())?;
        self.kernel.recount()?;
        let program = self.kernel.program()?;
        let is_ours = case.packets != Packets::Look;
        let aim = |repeater: &mut Repeater| match is_ours {
            true => repeater.aim(&program),
            false => repeater.aim_at(Yardstick::Look),
        };
        let sample = match case.packets {
            Packets::New => case.flows / ROUNDS,
            _ => SAMPLE,
        };
        let mut rounds = Vec::new();
        let mut sent = 0;
        if case.packets != Packets::New {
            aim(&mut self.repeater)?;
            let all = case.flows.max(sample);
            self.repeater.run(all)?;
            sent += all;
        }
        for _ in 0..ROUNDS {
            // New flows come once, in their order: what isn't measured uses others.
            let start = self.repeater.next()?;
            let mut taken = [0.0; 3];
            for (yardstick, taken) in
                [Yardstick::Nothing, Yardstick::Encapsulate].into_iter().zip(&mut taken)
            {
                self.repeater.aim_at(yardstick)?;
                *taken = self.repeater.run(sample)?;
                self.repeater.set_next(start)?;
            }
            aim(&mut self.repeater)?;
            taken[2] = self.repeater.run(sample)?;
            rounds.push(taken);
            sent += sample;
        }
        let ours = if is_ours { sent.into() } else { 0 };
        self.kernel.confirm_many(case.reason(), ours).with_context(|| format!("{case:?}"))?;
        Ok(evaluate(&rounds))
    }

    /// Opens flows, and returns what each sends next in both directions.
    fn open(&mut self, vip: Socket, flows: u32) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut frames = Vec::new();
        for number in 0..flows {
            let syn = frame(crowd::segment(vip, number, flags::SYN));
            let outcome = self.kernel.run(&syn)?;
            let mut reply = Vec::new();
            if [VIP, VIP_IPV6].contains(&vip) {
                let seen = Seen::new(&outcome.frame);
                let all = BACKENDS.into_iter().chain(BACKENDS_IPV6);
                let mut backends = all.filter(|index| backend_address(*index) == seen.destination);
                let backend = backends.next().context("its backend")?;
                let mut answer = crowd::answer(backend, seen.source);
                self.kernel.run(&answer.build())?;
                answer.source_mac = [0x02, 0, 0, 0, 1, 0];
                answer.sequence += 1;
                reply = frame(answer.with_flags(flags::ACK));
            } else if let (_, _, backend) = other(vip)?
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
    let tenth = |times: &[f64]| times[times.len() / 10];
    let middle = |times: &[f64]| times[times.len() / 2];
    Measured {
        median: middle(&taken) - middle(&floor),
        best: tenth(&taken) - tenth(&floor),
        yardstick: tenth(&yardstick) - tenth(&floor),
    }
}
