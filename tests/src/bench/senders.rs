//! Who sends frames of connections that have been opened before, and who counts them at the backend.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aya::Ebpf;
use lb_common::{abi::Tick, datapath::LEAST_TRACED_AGE};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use xtask::netns::Namespace;

use super::{
    bed::{Bed, hardware_address_in, hardware_address_of},
    systems::{Running, System, attach_at_backend},
};
use crate::{
    client::{Connection, within},
    frame::{Segment, flags},
    repeat::{Generator, MARK, counted},
};

/// One sender for each connection, and what counts at the backend.
pub(super) struct Senders<'b> {
    bed: &'b Bed,
    generators: Vec<Generator>,
    own_counter: Option<Ebpf>,
    opened: Instant,
    /// They stay open.
    _connections: Vec<Connection>,
}

impl<'b> Senders<'b> {
    /// Opens so many connections through a system, and makes a sender of frames as short as Ethernet has them for each.
    ///
    /// # Errors
    ///
    /// A connection fails, or the kernel refuses.
    pub(super) fn new(
        bed: &'b Bed,
        system: System,
        running: &Running,
        count: usize,
    ) -> Result<Self> {
        let open = |_| -> Result<Connection> {
            let mut connection = Connection::open(&bed.client, system.address())?;
            connection.request()?;
            Ok(connection)
        };
        let connections = (0..count).map(open).collect::<Result<Vec<_>>>()?;
        if system == System::Nftables {
            // The frames say nothing new, whatever their numbers.
            let key = "net.netfilter.nf_conntrack_tcp_be_liberal=1";
            bed.at_balancer("sysctl", &["-qw", key])?;
        }
        let own_counter = match running.decapsulator {
            Some(_) => None,
            None => Some(attach_at_backend(bed, "count")?),
        };
        let mut generators = Vec::new();
        for connection in &connections {
            let frame = frame(bed, connection.local_address()?, system.address().parse()?)?;
            generators.push(within(&bed.client, move || {
                let interface = nix::net::if_::if_nametoindex("client0")?;
                Generator::new(interface, frame).map_err(io::Error::other)
            })?);
        }
        let opened = Instant::now();
        Ok(Self { bed, generators, own_counter, opened, _connections: connections })
    }

    /// Whether frames sent from now on are of steady flows: lb looks up younger ones frame by frame. Whoever sends until then has
    /// everything warm.
    pub(super) fn are_steady(&self) -> bool {
        self.opened.elapsed()
            >= Duration::from_nanos(u64::from(LEAST_TRACED_AGE + 1) * Tick::NANOSECONDS)
    }

    /// Has the first connections' senders send so many frames each, each from a processor of its own, at the same time. Returns how long
    /// the slowest one took.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub(super) fn send(&mut self, frames: u32, processors: &[usize]) -> Result<Duration> {
        let client = &self.bed.client;
        let resting = self.generators.split_off(processors.len());
        let taken = thread::scope(|scope| {
            let senders: Vec<_> = self
                .generators
                .drain(..)
                .zip(processors)
                .map(|(generator, place)| scope.spawn(|| send(client, generator, *place, frames)))
                .collect();
            let done = senders.into_iter().map(|sender| {
                let sender = sender.join().map_err(|_| anyhow::anyhow!("a sender panicked"));
                sender.flatten()
            });
            done.collect::<Result<Vec<_>>>()
        })?;
        let longest = taken.iter().map(|(_, taken)| *taken).max().context("a sender")?;
        self.generators.extend(taken.into_iter().map(|(generator, _)| generator).chain(resting));
        Ok(longest)
    }

    /// How many frames have arrived at the backend.
    ///
    /// # Errors
    ///
    /// The counter can't be read.
    pub(super) fn arrived(&self, running: &Running) -> Result<u64> {
        counted(self.own_counter.as_ref().or(running.decapsulator.as_ref()).context("a counter")?)
    }
}

/// Sends so many frames from a processor, and returns the generator and how long it took.
fn send(
    client: &Namespace,
    mut generator: Generator,
    processor: usize,
    frames: u32,
) -> Result<(Generator, Duration)> {
    within(client, move || {
        let mut one = CpuSet::new();
        one.set(processor)?;
        sched_setaffinity(Pid::from_raw(0), &one)?;
        let taken = generator.send(frames).map_err(io::Error::other)?;
        Ok((generator, taken))
    })
}

/// What the connection's client might send: an acknowledgement without data, 64 bytes with Ethernet's check sequence.
fn frame(bed: &Bed, client: SocketAddr, service: SocketAddr) -> Result<Vec<u8>> {
    let socket = |address: SocketAddr| -> (IpAddr, u16) { (address.ip(), address.port()) };
    let mut segment = Segment::syn(socket(client), socket(service)).with_flags(flags::ACK);
    let own = bed.client.ip(&["-o", "link", "show", "client0"])?;
    segment.source_mac = hardware_address_of(hardware_address_in(&own)?)?;
    let balancers = bed.at_balancer("ip", &["-o", "link", "show", "lb0"])?;
    segment.destination_mac = hardware_address_of(hardware_address_in(&balancers)?)?;
    segment.service = MARK;
    segment.trailer = vec![0; 6];
    Ok(segment.build())
}
