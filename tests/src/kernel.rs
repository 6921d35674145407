//! The loaded program, run on made frames by the kernel (`BPF_PROG_TEST_RUN`).

use std::{net::IpAddr, sync::atomic::Ordering};

use anyhow::{Result, bail, ensure};
use aya::{
    maps::{HashMap, MapData, PerCpuArray, PerCpuValues, lpm_trie::Key},
    programs::{ProgramFd, TestRun, TestRunOptions},
};
use lb_common::{
    abi::{AccessKey, Backend, Counters, PortSet, RING_CHUNK_SLOTS, Refusal, Station},
    datapath::{Action, Reason},
    wire::NetworkU16,
};
use lb_userspace::dataplane::{Capacity, Loaded, Pins, load, nat_source_words};
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

use crate::{
    host::Outcome,
    pins::pin_directory,
    world::{INGRESS, OTHER_INTERFACE, World},
};

/// Fewest bytes that the kernel runs a program on: an Ethernet header.
pub const SHORTEST_FRAME: usize = 14;
/// Most bytes that fit: a page less what the kernel keeps before and behind a frame.
pub const LONGEST_FRAME: usize = 3500;

/// The loaded program with maps of its own, which go when this does.
pub struct Kernel {
    pub(crate) loaded: Loaded,
    pins: Pins,
    output: Vec<u8>,
    /// Counts of reasons so far.
    counted: [u64; Reason::ALL.len()],
}

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

impl Kernel {
    /// Loads the program, with maps that hold what `world` says. From then on the thread stays on its CPU: whose turn it
    /// is, each CPU counts by itself.
    ///
    /// # Errors
    ///
    /// The kernel refuses, or the user may not.
    pub fn new(world: &World) -> Result<Self> {
        let mut here = CpuSet::new();
        here.set(sched_getcpu()?)?;
        sched_setaffinity(Pid::from_raw(0), &here)?;
        let pins = Pins::new(&pin_directory()?);
        let capacity = Capacity {
            flows: world.flows,
            embryonic: world.embryonic,
            services: 32,
            binds: 65_536,
            backends: 32,
            ring_slots: (world.ring.len() as u32).next_multiple_of(RING_CHUNK_SLOTS),
            nat_sources: 16,
            port_words: world.port_words().len() as u32,
            networks: 64,
            clients: 65_536,
            sources: 65_536,
        };
        let loaded = load(&pins, &capacity);
        let mut kernel = match loaded {
            Ok(loaded) => {
                Self { loaded, pins, output: vec![0; 4096], counted: [0; Reason::ALL.len()] }
            }
            Err(error) => {
                pins.remove()?;
                return Err(error.into());
            }
        };
        kernel.fill(world)?;
        Ok(kernel)
    }

    /// How many instructions of each program the verifier looked at, by all paths together.
    ///
    /// # Errors
    ///
    /// The kernel doesn't say.
    pub fn verified_instructions(&mut self) -> Result<Vec<u32>> {
        let counts = self.loaded.verified_instructions()?;
        ensure!(!counts.contains(&0), "the kernel doesn't say");
        Ok(counts)
    }

    /// Forgets all flows and counts, and frees all ports.
    ///
    /// # Errors
    ///
    /// The maps can't be changed.
    pub fn reset(&mut self, world: &World) -> Result<()> {
        self.forget_flows()?;
        let maps = &mut self.loaded.maps;
        clear(&mut maps.ipv4.fragments)?;
        clear(&mut maps.ipv6.fragments)?;
        clear(&mut maps.ipv4.clients)?;
        clear(&mut maps.ipv6.clients)?;
        for index in 0..maps.refusals.len() {
            maps.refusals.set(index, Refusal::default(), 0)?;
        }
        for loads in [&mut maps.loads, &mut maps.service_loads] {
            for index in 0..loads.len() {
                loads.set(index, 0, 0)?;
            }
        }
        for (word, free) in maps.ports.words().iter().zip(world.port_words()) {
            word.store(free, Ordering::Relaxed);
        }
        maps.settings.set(0, world.settings, 0)?;
        clear_counters(&mut maps.service_counters, Counters::default())?;
        clear_counters(&mut maps.backend_counters, Counters::default())?;
        clear_counters(&mut maps.reason_counters, 0)?;
        self.counted.fill(0);
        Ok(())
    }

    /// Writes what is known of a backend.
    ///
    /// # Errors
    ///
    /// The map can't be changed.
    pub fn write_backend(&mut self, index: u32, backend: &Backend) -> Result<()> {
        Ok(self.loaded.maps.backends.set(index, backend, 0)?)
    }

    /// Writes which of our hardware addresses stands at a place.
    ///
    /// # Errors
    ///
    /// The map can't be changed.
    pub fn set_station(&mut self, place: u32, station: Station) -> Result<()> {
        Ok(self.loaded.maps.stations.set(place, station, 0)?)
    }

    /// Writes the slots of all rings.
    pub fn write_rings(&self, slots: &[u32]) {
        self.loaded.maps.rings.write(0, slots);
    }

    /// The program itself, for another to call it.
    ///
    /// # Errors
    ///
    /// It can't be had.
    pub fn program(&mut self) -> Result<ProgramFd> {
        Ok(self.loaded.program()?.fd()?.try_clone()?)
    }

    /// Runs one frame through the program. The outcome's reason isn't known before [`Self::confirm`].
    ///
    /// # Errors
    ///
    /// The kernel can't, or the program did something that no verdict stands for.
    pub fn run(&mut self, frame: &[u8]) -> Result<Outcome> {
        let result = self.loaded.program()?.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut self.output),
            ..TestRunOptions::new()
        })?;
        let length = result.data_size_out as usize;
        let (action, redirected) = match result.return_value {
            XDP_PASS => (Action::Pass, false),
            XDP_DROP => (Action::Drop, false),
            XDP_TX => (Action::Transmit, false),
            XDP_REDIRECT => (Action::Transmit, true),
            other => bail!("the program returned {other}"),
        };
        let frame = self.output[..length].to_vec();
        Ok(Outcome { action, redirected, reason: Reason::TablesIncomplete, frame })
    }

    /// Demands that the frame before was counted under a reason.
    ///
    /// # Errors
    ///
    /// It wasn't.
    pub fn confirm(&mut self, reason: Reason) -> Result<()> {
        self.confirm_many(reason, 1)
    }

    /// Demands that so many frames were counted under a reason since it was last confirmed.
    ///
    /// # Errors
    ///
    /// They weren't.
    pub fn confirm_many(&mut self, reason: Reason, packets: u64) -> Result<()> {
        let count = self.loaded.maps.reason_count(reason)?;
        let counted = count - self.counted[reason as usize];
        if counted != packets {
            bail!("{reason:?} was counted {counted} times, not {packets}; {}", self.reasons()?);
        }
        self.counted[reason as usize] = count;
        Ok(())
    }

    /// Counts anew what [`Self::confirm_many`] demands.
    ///
    /// # Errors
    ///
    /// The map can't be read.
    pub fn recount(&mut self) -> Result<()> {
        for reason in Reason::ALL {
            self.counted[*reason as usize] = self.loaded.maps.reason_count(*reason)?;
        }
        Ok(())
    }

    /// Packets counted under all reasons.
    ///
    /// # Errors
    ///
    /// The map can't be read.
    pub fn packets(&self) -> Result<u64> {
        let mut sum = 0;
        for reason in Reason::ALL {
            sum += self.loaded.maps.reason_count(*reason)?;
        }
        Ok(sum)
    }

    /// Where its maps are pinned.
    pub const fn pins(&self) -> &Pins {
        &self.pins
    }

    fn reasons(&self) -> Result<String> {
        let mut text = String::from("counts so far:");
        for reason in Reason::ALL {
            let count = self.loaded.maps.reason_count(*reason)?;
            if count > 0 {
                text += &format!(" {} {count}", reason.name());
            }
        }
        Ok(text)
    }

    /// Writes what lists say of networks.
    ///
    /// # Errors
    ///
    /// A map can't be changed.
    pub fn write_access(&mut self, world: &World) -> Result<()> {
        let maps = &mut self.loaded.maps;
        for (list, network, access) in &world.access {
            let (list, bits) = (*list, 32 + u32::from(network.prefix_len()));
            match network.addr() {
                IpAddr::V4(address) => {
                    let key = AccessKey { list, address: address.into() };
                    maps.ipv4.access.insert(&Key::new(bits, key), access, 0)?;
                }
                IpAddr::V6(address) => {
                    let key = AccessKey { list, address: address.into() };
                    maps.ipv6.access.insert(&Key::new(bits, key), access, 0)?;
                }
            }
        }
        Ok(())
    }

    fn fill(&mut self, world: &World) -> Result<()> {
        let maps = &mut self.loaded.maps;
        maps.settings.set(0, world.settings, 0)?;
        for (index, backend) in (1..).zip(&world.backends) {
            maps.backends.set(index, backend, 0)?;
        }
        for (index, address) in (0..).zip(&world.nat_sources) {
            maps.nat_sources.set(index, nat_source_words(*address), 0)?;
        }
        for (mac, longest) in &world.local_macs {
            maps.local_macs.insert(mac, longest, 0)?;
        }
        for (place, station) in world.stations() {
            maps.stations.set(place, station, 0)?;
        }
        let ports = world.ports();
        for set in PortSet::ALL {
            let is_in = |port: &u16| ports.of(NetworkU16::new(*port)).has(set);
            maps.port_sets.add(set, (0..=u16::MAX).filter(is_in));
        }
        maps.rings.write(0, &world.ring);
        for (word, free) in maps.ports.words().iter().zip(world.port_words()) {
            word.store(free, Ordering::Relaxed);
        }
        self.write_access(world)?;
        let maps = &mut self.loaded.maps;
        // Test runs come in on the loopback interface, and nothing is really sent.
        maps.egress.insert(OTHER_INTERFACE, INGRESS, None, 0)?;
        for (key, service) in world.services_ipv4() {
            maps.ipv4.services.insert(key, service, 0)?;
        }
        for (key, service) in world.services_ipv6() {
            maps.ipv6.services.insert(key, service, 0)?;
        }
        Ok(())
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if let Err(error) = self.pins.remove() {
            eprintln!("removing the pins: {error}");
        }
    }
}

fn clear<K: aya::Pod, V: aya::Pod>(map: &mut HashMap<MapData, K, V>) -> Result<()> {
    let keys: Vec<K> = map.keys().collect::<Result<_, _>>()?;
    keys.iter().try_for_each(|key| Ok(map.remove(key)?))
}

fn clear_counters<T: aya::Pod>(counters: &mut PerCpuArray<MapData, T>, zero: T) -> Result<()> {
    for index in 0..counters.len() {
        let cpus = counters.get(&index, 0)?.len();
        counters.set(index, PerCpuValues::try_from(vec![zero; cpus])?, 0)?;
    }
    Ok(())
}
