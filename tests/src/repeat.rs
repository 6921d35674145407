//! Runs a program on many flows' frames in turn, in the kernel, and measures how long one frame takes.

use std::{
    mem,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{Array, DevMap, HashMap, MapData, PerCpuArray, ProgramArray},
    programs::{ProgramFd, TestRun, TestRunAttrs, TestRunOptions, Xdp},
};

use nix::time::{ClockId, clock_gettime};

#[path = "../ebpf/src/run.rs"]
mod run;

pub(crate) use run::MARK;
use run::{OWN_IPV4, OWN_IPV6, Run, SENT_WORDS, SHARED, Variation, WORDS};

static OBJECT: &[u8] = include_bytes_aligned!(env!("LB_TESTS_EBPF_OBJECT"));

// SAFETY: numbers without padding, in C's layout.
unsafe impl aya::Pod for Run {}

/// Where the TCP checksum lies in frames of both families, behind Ethernet and IP headers.
const CHECKSUM_IPV4: usize = 14 + 20 + 16;
const CHECKSUM_IPV6: usize = 14 + 40 + 16;

const XDP_ABORTED: u32 = 0;
const XDP_TX: u32 = 3;

/// What the measured program is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Yardstick {
    /// A program that sends every frame back.
    Nothing,
    /// One that puts an outer header before it.
    Encapsulate,
    /// One that looks at a word of its flow's, in a table of 4 MB.
    Look,
    /// One that records its flow, in a table with the least recently used at hand.
    Record,
    /// One that sends it to a backend by consistent hashing.
    Balance,
}

impl Yardstick {
    /// Every one.
    const ALL: [Self; 5] =
        [Self::Nothing, Self::Encapsulate, Self::Look, Self::Record, Self::Balance];

    /// Its program.
    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Encapsulate => "encapsulate",
            Self::Look => "look",
            Self::Record => "record",
            Self::Balance => "balance",
        }
    }
}

/// The program that runs others.
pub struct Repeater {
    ebpf: Ebpf,
    run: Array<MapData, Run>,
    variations: Array<MapData, Variation>,
    target: ProgramArray<MapData>,
    program: &'static str,
    frame: Vec<u8>,
    /// What the measured program has to return.
    action: Option<u32>,
}

impl Repeater {
    /// Loads it, with room for so many flows.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn new(flows: u32) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().map_max_entries("VARIATIONS", flows).load(OBJECT)?;
        for name in
            ["repeat_ipv4", "repeat_ipv6"].into_iter().chain(Yardstick::ALL.map(Yardstick::name))
        {
            program(&mut ebpf, name)?.load().with_context(|| name)?;
        }
        let mut map = |name| ebpf.take_map(name).with_context(|| name);
        Ok(Self {
            run: Array::try_from(map("RUN")?)?,
            variations: Array::try_from(map("VARIATIONS")?)?,
            target: ProgramArray::try_from(map("TARGET")?)?,
            ebpf,
            program: "repeat_ipv4",
            frame: Vec::new(),
            action: None,
        })
    }

    /// Sets the frames, one a flow, all of one family and length, in the order in which they come.
    ///
    /// # Errors
    ///
    /// They differ in more than a `Variation` holds and TCP's checksum, or there are more than there is room for.
    pub fn set_frames(&mut self, frames: impl Iterator<Item = Vec<u8>>) -> Result<()> {
        let mut run: Option<Run> = None;
        for (number, mut frame) in (0..).zip(frames) {
            let is_ipv6 = frame[12..14] == [0x86, 0xdd];
            // It isn't looked at, and no flow has its own.
            let checksum = if is_ipv6 { CHECKSUM_IPV6 } else { CHECKSUM_IPV4 };
            frame[checksum..checksum + 2].fill(0);
            let (words, _) = frame.as_chunks::<8>();
            let words = words.first_chunk::<WORDS>().context("a frame is too short")?;
            // BPF is compiled for processors of this order alone.
            let mut template = words.map(u64::from_le_bytes);
            self.variations.set(number, take_own(&mut template, is_ipv6), 0)?;
            let run = run.get_or_insert_with(|| {
                self.program = if is_ipv6 { "repeat_ipv6" } else { "repeat_ipv4" };
                let length = frame.len() as u32;
                Run { template, length, flows: 0, next: 0, reserved: 0, written: 0 }
            });
            ensure!(run.template == template, "flow {number} differs");
            ensure!(run.length as usize == frame.len());
            run.flows = number + 1;
            self.frame = frame;
        }
        self.run.set(0, run.context("no frames")?, 0)?;
        Ok(())
    }

    /// Has another program run, whatever it returns.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn aim(&mut self, target: &ProgramFd) -> Result<()> {
        self.action = None;
        Ok(self.target.set(0, target, 0)?)
    }

    /// The same, one of its own, which has to send all frames back.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn aim_at(&mut self, yardstick: Yardstick) -> Result<()> {
        let target = program(&mut self.ebpf, yardstick.name())?.fd()?.try_clone()?;
        self.aim(&target)?;
        self.action = Some(XDP_TX);
        Ok(())
    }

    /// Makes an address and port a service of [`Yardstick::Balance`].
    ///
    /// # Errors
    ///
    /// The map can't be changed.
    pub fn balance(&mut self, address: Ipv4Addr, port: u16) -> Result<()> {
        let map = self.ebpf.map_mut("BALANCED").context("BALANCED")?;
        let mut services: HashMap<_, [u32; 2], u32> = HashMap::try_from(map)?;
        let service = [u32::from_ne_bytes(address.octets()), port.to_be().into()];
        Ok(services.insert(service, 0, 0)?)
    }

    /// Which flow's turn it is.
    ///
    /// # Errors
    ///
    /// The map can't be read.
    pub fn next(&self) -> Result<u32> {
        Ok(self.run.get(&0, 0)?.next)
    }

    /// Sets that.
    ///
    /// # Errors
    ///
    /// The map can't be changed.
    pub fn set_next(&mut self, next: u32) -> Result<()> {
        let run = self.run.get(&0, 0)?;
        Ok(self.run.set(0, Run { next, ..run }, 0)?)
    }

    /// Runs the program that many times, and returns how much of the processor's time one run took in the mean, in
    /// nanoseconds.
    ///
    /// # Errors
    ///
    /// The kernel refuses, the program that was to be run wasn't, or it didn't do what it should with the last frame.
    pub fn run(&mut self, times: u32) -> Result<f64> {
        // What the kernel tells is rounded to a nanosecond.
        let now = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
        let start = now()?;
        let result = program(&mut self.ebpf, self.program)?.test_run(TestRunOptions {
            data_in: Some(&self.frame),
            repeat: times,
            ..TestRunOptions::new()
        })?;
        let action = result.return_value;
        ensure!(action != XDP_ABORTED, "the program wasn't run");
        ensure!(self.action.is_none_or(|demanded| demanded == action), "it returned {action}");
        Ok((now()? - start).as_nanos() as f64 / f64::from(times))
    }

    /// The same after so many times `before`, which don't count.
    ///
    /// # Errors
    ///
    /// As of [`Self::run`].
    pub fn run_after(&mut self, before: u32, times: u32) -> Result<f64> {
        if before > 0 {
            self.run(before)?;
        }
        self.run(times)
    }
}

/// Sends one frame again and again, as fast as the kernel can.
pub struct Generator {
    ebpf: Ebpf,
    frame: Vec<u8>,
}

impl Generator {
    /// Loads it. The interface is one of this thread's namespace.
    ///
    /// # Errors
    ///
    /// The kernel refuses, or the frame is too short.
    pub fn new(interface: u32, frame: Vec<u8>) -> Result<Self> {
        let mut ebpf = Ebpf::load(OBJECT)?;
        program(&mut ebpf, "generate")?.load()?;
        let (words, _) = frame.as_chunks::<8>();
        let words = words.first_chunk::<SENT_WORDS>().context("a frame is too short")?;
        let mut map = |name| ebpf.take_map(name).with_context(|| name);
        let mut sent: Array<MapData, [u64; SENT_WORDS]> = Array::try_from(map("SENT")?)?;
        sent.set(0, words.map(u64::from_ne_bytes), 0)?;
        let mut sent_by: DevMap<MapData> = DevMap::try_from(map("SENT_BY")?)?;
        sent_by.set(0, interface, None, 0)?;
        Ok(Self { ebpf, frame })
    }

    /// Sends that many, from this thread's namespace and processor, and returns how long it took. What happens to them on
    /// this processor is part of that.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn send(&mut self, frames: u32) -> Result<Duration> {
        /// How many the kernel hands on at once: what its drivers take from a ring at once.
        const BATCH: u32 = 64;
        let start = Instant::now();
        program(&mut self.ebpf, "generate")?.test_run(TestRunOptions {
            data_in: Some(&self.frame),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        })?;
        Ok(start.elapsed())
    }
}

/// How many frames of a [`Generator`] the programs of an object have counted.
///
/// # Errors
///
/// It has no such map.
pub fn counted(ebpf: &Ebpf) -> Result<u64> {
    let counted: PerCpuArray<_, u64> =
        PerCpuArray::try_from(ebpf.map("COUNTED").context("COUNTED")?)?;
    Ok(counted.get(&0, 0)?.iter().sum())
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| name.to_owned())?.try_into()?)
}

/// What a frame has of its own, which the template is without.
fn take_own(template: &mut [u64; WORDS], is_ipv6: bool) -> Variation {
    if !is_ipv6 {
        return OWN_IPV4.map(|word| mem::take(&mut template[word]));
    }
    let (word, [low, high]) = OWN_IPV6;
    let shared = template[low] >> SHARED | template[high] << (u64::BITS - SHARED);
    template[low] &= (1 << SHARED) - 1;
    template[high] &= u64::MAX << SHARED;
    [mem::take(&mut template[word]), shared]
}
