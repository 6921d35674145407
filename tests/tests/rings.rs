//! Flows go where the ring says, and stay where they are while it changes, in every mode.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use lb_common::datapath::Table;
use lb_tests::{
    bed::Bed,
    client::{self, Connection, Load},
    frame::{Segment, flags},
    kernel::Kernel,
    modes::{self, MODES, Modes, Programs},
    seen::Seen,
    world::{OTHER_FORWARDINGS, Socket, VIP, VIP_IPV6, World, backend_mac, client_of},
};

const PROGRAMS: Programs = Programs {
    lb: env!("CARGO_BIN_EXE_lb-under-test"),
    decapsulator: env!("CARGO_BIN_EXE_decapsulator"),
    responder: env!("CARGO_BIN_EXE_responder"),
};

/// Clients of each service, by each protocol.
const CLIENTS: u16 = 40;

/// A flow, as its client knows it.
struct Flow {
    client: Socket,
    vip: Socket,
    is_udp: bool,
    /// Hardware address of its backend.
    home: [u8; 6],
}

impl Flow {
    /// Sends a segment of the client's, and returns where it went, and from where it seems to come.
    fn send(&self, kernel: &mut Kernel, bits: u8) -> Result<([u8; 6], Seen)> {
        let mut segment = if self.is_udp {
            Segment::udp(self.client, self.vip)
        } else {
            Segment::syn(self.client, self.vip).with_flags(bits)
        };
        segment.sequence = if bits == flags::SYN { 1000 } else { 1001 };
        segment.acknowledgement = 5001;
        let seen = Seen::new(&kernel.run(&segment.build())?.frame);
        Ok((seen.destination_mac, seen))
    }

    /// Opens it, with a backend that answers if its answers come back here.
    fn open(mut self, kernel: &mut Kernel, sees_replies: bool) -> Result<Self> {
        let (home, seen) = self.send(kernel, flags::SYN)?;
        self.home = home;
        if sees_replies {
            let mut answer = if self.is_udp {
                Segment::udp(seen.destination, seen.source)
            } else {
                let bits = flags::SYN | flags::ACK;
                Segment::syn(seen.destination, seen.source).with_flags(bits)
            };
            answer.source_mac = home;
            (answer.sequence, answer.acknowledgement) = (5000, 1001);
            let told = Seen::new(&kernel.run(&answer.build())?.frame);
            ensure!(told.destination == self.client, "{:?}: {told:?}", self.vip);
        }
        self.demand_home(kernel)?;
        Ok(self)
    }

    /// Demands that it goes where it went at first.
    fn demand_home(&self, kernel: &mut Kernel) -> Result<()> {
        let (home, seen) = self.send(kernel, flags::ACK)?;
        ensure!(home == self.home, "{:?} was at {:x?}: {seen:x?}", self.vip, self.home);
        Ok(())
    }
}

#[test]
fn flows_of_every_mode_stay_on_their_backends_through_a_thousand_rings() -> Result<()> {
    const CHANGES: usize = 1000;
    let world = World::default().with_twins();
    let mut kernel = Kernel::new(&world)?;
    let services = [(VIP, true), (VIP_IPV6, true)]
        .into_iter()
        .chain(OTHER_FORWARDINGS.map(|(forwarding, vip, _)| (vip, forwarding.sees_replies())));
    let mut flows = Vec::new();
    for (vip, sees_replies) in services {
        for number in 0..CLIENTS {
            for is_udp in [false, true] {
                let client = (client_of(vip.0).0, 20_000 + vip.1 % 100 * 100 + number);
                let flow = Flow { client, vip, is_udp, home: [0; 6] };
                flows.push(flow.open(&mut kernel, sees_replies)?);
            }
        }
        let of_service = flows.iter().rev().take(2 * usize::from(CLIENTS));
        let mut homes: Vec<_> = of_service.map(|flow| flow.home).collect();
        homes.sort_unstable();
        homes.dedup();
        ensure!(homes.len() > 1, "{vip:?}: all on one backend");
    }
    ensure!(kernel.entries(Table::Embryonic)? == 0, "all of them are established");

    // Each ring's slots change hands among its backends.
    let mut random = Rng::with_seed(4);
    let mut rings = world.ring.clone();
    let mut next = flows.iter().cycle();
    for _ in 0..CHANGES {
        for (_, service) in &world.services {
            let (start, size) = (service.ring.offset() as usize, service.ring.size() as usize);
            random.shuffle(&mut rings[start..start + size]);
        }
        kernel.write_rings(&rings);
        for flow in next.by_ref().take(flows.len() / 100) {
            flow.demand_home(&mut kernel)?;
        }
    }
    // Where they would go if they weren't known.
    kernel.reset(&world)?;
    let mut moved = 0;
    for flow in &flows {
        moved += usize::from(flow.send(&mut kernel, flags::SYN)?.0 != flow.home);
    }
    ensure!(moved > flows.len() / 4, "the rings lead but {moved} flows elsewhere");
    Ok(())
}

#[test]
fn thousands_of_weights_a_minute_break_nothing_under_load() -> Result<()> {
    const CHANGES: u32 = 400;
    let bed = Bed::new(PROGRAMS.lb, "native", 3)?;
    let mut held = client::held(&bed, 30)?;
    let load = Load::start(&bed, 32, 5)?;
    let start = std::time::Instant::now();
    let mut random = Rng::with_seed(5);
    for change in 0..CHANGES {
        let backend = format!("ui/mgmt{:02}", random.u8(1..=3));
        match random.u8(..10) {
            // One of them at most.
            0 => bed.lb_ok(&["drain", "ui/mgmt01"])?,
            1..4 => bed.lb_ok(&["ready", &backend])?,
            _ => bed.lb_ok(&["weight", &backend, &random.u16(1..=256).to_string()])?,
        };
        let (name, connection) = &mut held[change as usize % 30];
        ensure!(connection.request()? == *name, "a connection moved");
        bed.request().context("a new connection")?;
    }
    println!("{CHANGES} changes in {:?}", start.elapsed());
    let requests = load.finish()?;
    for (name, connection) in &mut held {
        ensure!(connection.request()? == *name, "a connection moved");
    }
    ensure!(requests > 0);
    Ok(())
}

#[test]
fn connections_of_every_mode_outlive_rings_without_their_backend() -> Result<()> {
    for xdp_mode in ["native", "generic"] {
        let modes = Modes::new(PROGRAMS, xdp_mode)?;
        let mut held = Vec::new();
        for mode in &MODES {
            let vip = mode.outside.socket(modes::VIP, mode.port);
            let mut connection = Connection::open(&modes.bed.client, &vip)?;
            connection.request().with_context(|| mode.name())?;
            held.push((mode, connection));
        }
        for weight in ["0", "1", "0"] {
            for mode in &MODES {
                let backend = format!("{}-tcp/only", mode.name());
                modes.bed.lb_ok(&["weight", &backend, weight])?;
                for (mode, connection) in &mut held {
                    connection.request().with_context(|| format!("{xdp_mode}, {}", mode.name()))?;
                }
            }
        }
        ensure!(modes.bed.reason("adopted")? == 0, "{xdp_mode}: a flow was forgotten");
    }
    Ok(())
}

/// The hash by which balancers that share a VIP and a seed pick a slot, as ARCHITECTURE.md has it.
fn hash_of(words: &[u64], seed: u32) -> u32 {
    let taken_in = words.iter().fold(u64::from(seed), |hash, word| {
        let hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^ (hash >> 32)
    });
    (taken_in.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32) as u32
}

/// An address in blocks.
fn blocks(address: IpAddr) -> Vec<u32> {
    match address {
        IpAddr::V4(address) => vec![u32::from(address)],
        IpAddr::V6(address) => {
            let bytes = address.octets();
            bytes
                .chunks_exact(4)
                .map(|four| u32::from_be_bytes([four[0], four[1], four[2], four[3]]))
                .collect()
        }
    }
}

#[test]
fn a_new_flow_goes_to_its_own_slot_of_the_ring() -> Result<()> {
    const FLOWS: u16 = 300;
    let world = World::default().with_twins();
    let mut kernel = Kernel::new(&world)?;
    for (_, vip, _) in OTHER_FORWARDINGS {
        let service = world.services.iter().find(|(socket, _)| *socket == vip);
        let ring = service.context("no such service")?.1.ring;
        for number in 0..FLOWS {
            let is_udp = number % 2 == 1;
            let client = (client_of(vip.0).0, 20_000 + number);
            let flow = Flow { client, vip, is_udp, home: [0; 6] };
            let (went, _) = flow.send(&mut kernel, flags::SYN)?;
            let ports = (u64::from(client.1) << 16) | u64::from(vip.1);
            let protocol = if is_udp { 17 } else { 6 };
            let addresses = blocks(client.0).into_iter().zip(blocks(vip.0));
            let mut words: Vec<_> =
                addresses.map(|(source, vip)| (u64::from(source) << 32) | u64::from(vip)).collect();
            words.push((protocol << 32) | ports);
            let hash = hash_of(&words, world.settings.hash_seed);
            let place = (u64::from(hash) * u64::from(ring.size())) >> 32;
            let backend = world.ring[ring.offset() as usize + place as usize];
            ensure!(
                went == backend_mac(backend),
                "{client:?} to {vip:?}: at {went:x?}, not {backend}"
            );
        }
    }
    Ok(())
}
