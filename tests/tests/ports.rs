//! Source ports of full NAT: against a model, and with few of them left.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use lb_common::datapath::Reason;
use lb_tests::{
    connection::Connection,
    frame::{Segment, flags},
    host::Host,
    pair::Pair,
    seen::Seen,
    world::{BACKENDS, CLIENT, Socket, VIP, World, backend_address, backend_mac},
};

/// A connection as its backend sees it: its own address, and what it takes for the client's.
type Tuple = (Socket, Socket);

/// A flow that is open.
#[derive(Clone, Copy)]
struct Open {
    client: Socket,
    tuple: Tuple,
}

fn client(number: u32) -> Socket {
    let [.., high, low] = (number / 60_000).to_be_bytes();
    (std::net::Ipv4Addr::new(198, 18, high, low).into(), 1024 + (number % 60_000) as u16)
}

fn from_client(open: &Open, bits: u8) -> Vec<u8> {
    let mut segment = Segment::syn(open.client, VIP).with_flags(bits);
    (segment.sequence, segment.acknowledgement) = (1001, 5001);
    segment.build()
}

fn from_backend(tuple: Tuple, bits: u8) -> Vec<u8> {
    let mut segment = Segment::syn(tuple.0, tuple.1).with_flags(bits);
    let index = BACKENDS.into_iter().find(|index| backend_address(*index) == tuple.0);
    segment.source_mac = backend_mac(index.expect("a backend"));
    // The FIN that a client may have sent, too.
    (segment.sequence, segment.acknowledgement) = (5000, 1002);
    segment.build()
}

/// Opens a connection, if it isn't refused.
fn open(host: &Host, client: Socket) -> Result<Result<Open, Reason>> {
    let outcome = host.run(&Segment::syn(client, VIP).build());
    if outcome.reason != Reason::Opened {
        return Ok(Err(outcome.reason));
    }
    let seen = Seen::new(&outcome.frame);
    let tuple = (seen.destination, seen.source);
    let open = Open { client, tuple };
    let answer = host.run(&from_backend(tuple, flags::SYN | flags::ACK)).reason;
    ensure!(answer == Reason::ToClient, "SYN-ACK: {answer:?}");
    let ack = host.run(&from_client(&open, flags::ACK)).reason;
    ensure!(ack == Reason::ToBackend, "ACK: {ack:?}");
    Ok(Ok(open))
}

/// Closes a connection, in one of the ways that there are.
fn close(host: &Host, open: &Open, way: u8) {
    let fin = flags::ACK | flags::FIN;
    match way % 4 {
        0 => {
            host.run(&from_client(open, fin));
            host.run(&from_backend(open.tuple, fin));
        }
        1 => {
            host.run(&from_backend(open.tuple, fin));
            host.run(&from_client(open, fin));
            host.run(&from_backend(open.tuple, flags::ACK));
        }
        2 => {
            // Which anybody may send; but not what the backend answers to data.
            host.run(&from_client(open, flags::RST));
            host.run(&from_backend(open.tuple, flags::RST));
        }
        _ => drop(host.run(&from_backend(open.tuple, flags::RST | flags::ACK))),
    }
}

fn world(ports: u32) -> World {
    let mut world = World::default();
    world.settings.nat_port_count = ports;
    world
}

#[test]
fn no_two_live_flows_share_a_tuple_over_a_million_random_steps() -> Result<()> {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = Rng::with_seed(seed);
    let host = Host::new(&world(500));
    let mut live: Vec<Open> = Vec::new();
    let mut tuples: HashSet<Tuple> = HashSet::new();
    let mut refused = 0;
    for step in 0..1_000_000u32 {
        // Between few and all of them.
        let wanted = if (step / 50_000).is_multiple_of(2) { 3 } else { 1 };
        if random.u8(0..4) < wanted {
            match open(&host, client(step))? {
                Ok(open) => {
                    ensure!(tuples.insert(open.tuple), "step {step}: {:?} is shared", open.tuple);
                    live.push(open);
                }
                Err(Reason::NatPortsExhausted) => refused += 1,
                Err(reason) => anyhow::bail!("step {step}: {reason:?}"),
            }
        } else if !live.is_empty() {
            let open = live.swap_remove(random.usize(0..live.len()));
            ensure!(tuples.remove(&open.tuple));
            close(&host, &open, random.u8(..));
        }
    }
    ensure!(refused > 1000, "the ports never ran out: {refused}");
    for open in &live {
        let reason = host.run(&from_client(open, flags::ACK)).reason;
        ensure!(reason == Reason::ToBackend, "{:?}: {reason:?}", open.tuple);
    }
    Ok(())
}

#[test]
fn the_last_ports_are_found_and_without_any_new_connections_are_refused() -> Result<()> {
    const PORTS: u32 = 8000;
    let host = Host::new(&world(PORTS));
    let mut of_backend: HashMap<Socket, u32> = HashMap::new();
    let mut refused: HashMap<Socket, u32> = HashMap::new();
    for number in 0..40_000 {
        match open(&host, client(number))? {
            Ok(open) => *of_backend.entry(open.tuple.0).or_default() += 1,
            Err(Reason::NatPortsExhausted) => *refused.entry(CLIENT).or_default() += 1,
            Err(reason) => anyhow::bail!("{reason:?}"),
        }
    }
    // Every port was given out before anyone was refused, by each of the three.
    ensure!(of_backend.len() == 3 && of_backend.values().all(|count| *count == PORTS));
    ensure!(refused[&CLIENT] == 40_000 - 3 * PORTS);
    Ok(())
}

#[test]
fn a_port_is_used_again_only_when_all_others_were() -> Result<()> {
    const PORTS: u32 = 512;
    let host = Host::new(&world(PORTS));
    let mut last: HashMap<Tuple, u32> = HashMap::new();
    let mut opened: HashMap<Socket, u32> = HashMap::new();
    let mut held = Vec::new();
    for number in 0..20_000 {
        let open = open(&host, client(number))?.ok().context("refused")?;
        let turn = opened.entry(open.tuple.0).or_default();
        *turn += 1;
        if let Some(before) = last.insert(open.tuple, *turn) {
            // Some of them are held open, one in eight.
            let rested = *turn - before;
            ensure!(rested >= PORTS * 7 / 8 - 64, "used again after {rested} others");
        }
        if number % 8 == 0 && held.len() < PORTS as usize / 8 {
            held.push(open);
        } else {
            close(&host, &open, number as u8);
        }
    }
    Ok(())
}

#[test]
fn a_port_that_only_seems_free_is_passed_over() -> Result<()> {
    const PORTS: u32 = 8;
    let mut world = world(PORTS);
    for slot in world.slots_mut().filter(|slot| BACKENDS.contains(slot)) {
        *slot = BACKENDS[0];
    }
    let mut pair = Pair::new(&world)?;
    let mut all = Vec::new();
    for port in 0..PORTS as u16 {
        let connection = Connection::open_from(&mut pair, (CLIENT.0, 20_000 + port), VIP)?;
        connection.establish(&mut pair)?;
        all.push(connection);
    }
    // The first ones' ports are given back, though they go on: their clients use theirs again.
    for connection in &all[..3] {
        connection.reply(&mut pair, "RST", &connection.from_backend(flags::RST))?;
        connection.request(&mut pair, "SYN", &Segment::syn(connection.client, VIP))?;
        connection.reply(&mut pair, "SYN-ACK", &connection.syn_ack())?;
    }
    let last = &all[PORTS as usize - 1];
    last.close(&mut pair)?;
    let another = Connection::open_from(&mut pair, (CLIENT.0, 30_000), VIP)?;
    ensure!(another.nat == last.nat, "{another:?} {last:?}");
    another.establish(&mut pair)?;
    for connection in &all[..3] {
        connection.request(&mut pair, "data", &connection.from_client(flags::ACK))?;
        connection.reply(&mut pair, "data", &connection.from_backend(flags::ACK))?;
    }
    pair.compare_tables()
}
