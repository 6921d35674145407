//! By direct return, packets of flows that were looked up lately go past the table of flows.

use std::{
    collections::HashMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_common::{
    abi::{Fate, Forwarding},
    datapath::{Reason, TRACE_TICKS, TRACE_WAYS, Table, TracePlace},
};
use lb_tests::{
    connection::flow_key,
    frame::{Segment, flags},
    kernel::Kernel,
    pair::Pair,
    seen::Seen,
    world::{OTHER_FORWARDINGS, Socket, World, backend_mac, client_of},
};
use lb_userspace::dataplane;
use nix::time::{ClockId, clock_getres};

/// Services whose replies don't pass through us, each with a backend.
fn direct() -> impl Iterator<Item = (Forwarding, Socket, u32)> {
    OTHER_FORWARDINGS.into_iter().filter(|(forwarding, ..)| !forwarding.sees_replies())
}

fn segment(client: Socket, vip: Socket, bits: u8) -> Segment {
    let mut segment = Segment::syn(client, vip).with_flags(bits);
    if bits != flags::SYN {
        (segment.sequence, segment.acknowledgement) = (1001, 5001);
    }
    segment
}

/// Sends a segment of a client's, and returns the station that it goes to.
fn send(pair: &mut Pair, client: Socket, vip: Socket, bits: u8, reason: Reason) -> Result<[u8; 6]> {
    let outcome = pair.expect("a segment", &segment(client, vip, bits).build(), reason)?;
    Ok(Seen::new(&outcome.frame).destination_mac)
}

/// Opens a connection, and sends as much as it takes to leave a trace.
fn open(pair: &mut Pair, client: Socket, vip: Socket) -> Result<[u8; 6]> {
    let home = send(pair, client, vip, flags::SYN, Reason::Opened)?;
    // The first one completes the handshake, the second one is looked up.
    for _ in 0..2 {
        ensure!(send(pair, client, vip, flags::ACK, Reason::ToBackend)? == home);
    }
    Ok(home)
}

/// The other backend of a backend's service.
fn twin_of(pair: &Pair, index: u32) -> u32 {
    let backends = &pair.host.world.backends;
    let service = backends[index as usize - 1].service;
    let others = (1..).zip(backends).filter(|(_, backend)| backend.service == service);
    others.map(|(other, _)| other).find(|other| *other != index).unwrap_or(index)
}

fn forget(pair: &mut Pair) -> Result<()> {
    pair.host.forget_flows();
    pair.kernel.forget_flows()
}

/// Sends a datagram as often as it takes to leave a trace, and forgets all else of its flow.
fn leave_trace_alone(pair: &mut Pair, datagram: &[u8]) -> Result<()> {
    pair.expect("the first", datagram, Reason::Opened)?;
    for _ in 0..2 {
        pair.expect("another", datagram, Reason::ToBackend)?;
    }
    forget(pair)
}

#[test]
fn steady_packets_need_no_entry_and_whatever_is_unusual_does() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for (_, vip, backend) in direct() {
        let client = client_of(vip.0);
        pair.within_one_tick(|pair| {
            let home = open(pair, client, vip)?;
            ensure!(home == backend_mac(backend), "{vip:?}: at {home:x?}");
            forget(pair)?;
            for bits in [flags::ACK, flags::ACK | flags::PSH] {
                ensure!(send(pair, client, vip, bits, Reason::ToBackend)? == home, "{vip:?}");
            }
            let mut flooded = segment(client, vip, flags::ACK);
            flooded.destination_mac[5] ^= 0x40;
            pair.expect("flooded", &flooded.build(), Reason::OtherStation)?;
            let mut tagged = segment(client, vip, flags::ACK);
            tagged.tags = vec![(0x8100, 77)];
            pair.expect("another VLAN's", &tagged.build(), Reason::OtherStation)?;
            // Of another flow, and the end of this one.
            send(pair, (client.0, client.1 + 1), vip, flags::ACK, Reason::Adopted)?;
            send(pair, client, vip, flags::FIN | flags::ACK, Reason::Adopted)?;
            forget(pair)?;
            send(pair, client, vip, flags::RST | flags::ACK, Reason::Adopted)?;
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn datagrams_need_no_entry_either() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for (_, vip, backend) in direct() {
        let datagram = Segment::udp(client_of(vip.0), vip).build();
        pair.within_one_tick(|pair| {
            leave_trace_alone(pair, &datagram)?;
            let outcome = pair.expect("unknown", &datagram, Reason::ToBackend)?;
            ensure!(Seen::new(&outcome.frame).destination_mac == backend_mac(backend), "{vip:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn first_fragments_are_looked_up_since_later_ones_have_to_find_their_flow() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for (_, vip, _) in direct() {
        let mut datagram = Segment::udp(client_of(vip.0), vip);
        datagram.payload = vec![7; 600];
        let [whole, first] = [datagram.build(), datagram.fragments(400).swap_remove(0)];
        pair.within_one_tick(|pair| {
            leave_trace_alone(pair, &whole)?;
            pair.expect("the flow's trace", &whole, Reason::ToBackend)?;
            pair.expect("a first fragment", &first, Reason::Opened).map(drop)
        })?;
    }
    Ok(())
}

#[test]
fn what_completes_a_handshake_is_looked_up_whatever_was_there_before() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for (_, vip, _) in direct() {
        let client = client_of(vip.0);
        pair.within_one_tick(|pair| {
            open(pair, client, vip)?;
            forget(pair)?;
            // The client uses its port again.
            send(pair, client, vip, flags::SYN, Reason::Opened)?;
            send(pair, client, vip, flags::ACK, Reason::ToBackend)?;
            let [host, kernel] =
                [pair.host.flows(Table::Established), pair.kernel.flows(Table::Established)?];
            ensure!(host.len() == 1 && host == kernel, "{vip:?}: {host:?} {kernel:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn flows_stay_where_they_are_through_changes_of_their_slots() -> Result<()> {
    let mut pair = Pair::new(&World::default().with_twins())?;
    for (number, (_, vip, first)) in (0..).zip(direct()) {
        let client = client_of(vip.0);
        let mut homes = Vec::new();
        for port in 0..8 {
            let client = (client.0, 20_000 + 100 * number + port);
            homes.push((client, open(&mut pair, client, vip)?));
        }
        let twins: Vec<u32> = (1..=pair.host.world.backends.len() as u32)
            .filter(|index| homes.iter().any(|(_, home)| *home == backend_mac(*index)))
            .collect();
        ensure!(twins.contains(&first) && twins.len() == 2, "{vip:?}: {twins:?}");
        for (round, (from, to)) in
            (0..).zip([(twins[0], twins[1]), (twins[1], twins[0]), (twins[0], twins[1])])
        {
            pair.hand_slots(from, to)?;
            for bits in [flags::ACK, flags::ACK | flags::PSH, flags::ACK] {
                for (client, home) in &homes {
                    let to = send(&mut pair, *client, vip, bits, Reason::ToBackend)?;
                    ensure!(to == *home, "{vip:?}: {client:?} moved");
                }
            }
            let newcomer = (client.0, 30_000 + 10 * number + round);
            let station = send(&mut pair, newcomer, vip, flags::SYN, Reason::Opened)?;
            ensure!(station == backend_mac(to), "{vip:?}: a new one goes to {station:x?}");
        }
        // What ends one is followed, and a reset is taken back.
        for bits in [flags::RST, flags::ACK, flags::FIN | flags::ACK, flags::ACK] {
            for (client, home) in &homes {
                let to = send(&mut pair, *client, vip, bits, Reason::ToBackend)?;
                ensure!(to == *home, "{vip:?}: {client:?} moved at its end");
            }
        }
    }
    pair.compare_tables()
}

/// The backend of a connection that goes to a station.
fn backend_at(pair: &Pair, station: [u8; 6]) -> Result<u32> {
    let mut all = 1..=pair.host.world.backends.len() as u32;
    all.find(|index| backend_mac(*index) == station).context("nobody's")
}

fn set_down(pair: &mut Pair, index: u32, is_down: bool) -> Result<()> {
    pair.change_backend(index, |backend| {
        backend.is_down = is_down.into();
        backend.fate = if is_down { Fate::Move } else { Fate::Keep };
    })
}

/// Demands that a connection whose backend was down when its client sent `next`, the last before that having been `last`, is found
/// where it went then, also once that backend is up again.
fn demand_found(last: u8, next: u8, reason: Reason) -> Result<()> {
    let mut pair = Pair::new(&World::default().with_twins())?;
    for (_, vip, _) in direct() {
        let client = client_of(vip.0);
        pair.within_one_tick(|pair| {
            let home = open(pair, client, vip)?;
            let backend = backend_at(pair, home)?;
            let twin = twin_of(pair, backend);
            send(pair, client, vip, last, Reason::ToBackend)?;
            set_down(pair, backend, true)?;
            pair.hand_slots(backend, twin)?;
            let other = send(pair, client, vip, next, reason)?;
            ensure!(other != home, "{vip:?}: to the one that is down");
            set_down(pair, backend, false)?;
            pair.hand_slots(twin, backend)?;
            for _ in 0..4 {
                let to = send(pair, client, vip, flags::ACK, Reason::ToBackend)?;
                ensure!(to == other, "{vip:?}: at {to:x?}");
            }
            pair.compare_tables()
        })?;
    }
    Ok(())
}

#[test]
fn a_flow_that_begins_elsewhere_is_found_there() -> Result<()> {
    // The client's connection is over, as far as it says.
    demand_found(flags::RST, flags::SYN, Reason::Opened)
}

#[test]
fn a_flow_that_was_moved_is_found_where_it_is() -> Result<()> {
    demand_found(flags::ACK, flags::ACK, Reason::Adopted)
}

#[test]
fn where_a_set_is_full_traces_stand_beside_it_and_go_from_there_as_well() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let (_, vip, _) = direct().next().context("a service")?;
    let (address, _) = client_of(vip.0);
    pair.within_one_tick(|pair| {
        let settings = pair.host.world.settings;
        let mut sets: HashMap<u32, Vec<Socket>> = HashMap::new();
        let crowd = (1024..u16::MAX).find_map(|port| {
            let there = sets
                .entry(TracePlace::of(&flow_key((address, port), vip), &settings).set)
                .or_default();
            there.push((address, port));
            (there.len() == TRACE_WAYS + 1).then(|| there.clone())
        });
        let crowd = crowd.context("more than a set has room for")?;
        for client in &crowd {
            open(pair, *client, vip)?;
        }
        forget(pair)?;
        for client in &crowd {
            send(pair, *client, vip, flags::ACK, Reason::ToBackend)?;
        }
        for client in &crowd {
            send(pair, *client, vip, flags::SYN, Reason::Opened)?;
        }
        forget(pair)?;
        for client in &crowd {
            send(pair, *client, vip, flags::ACK, Reason::Adopted)?;
        }
        forget(pair)?;
        // The controller's part, of what the sweep removes.
        for client in &crowd {
            open(pair, *client, vip)?;
        }
        pair.kernel.sweep_flows()?;
        pair.host.forget_flows();
        pair.host.forget_traces();
        for client in &crowd {
            send(pair, *client, vip, flags::ACK, Reason::Adopted)?;
        }
        Ok(())
    })
}

#[test]
fn a_trace_holds_for_eight_beats_of_the_kernels_clock() -> Result<()> {
    let mut world = World::default();
    world.settings.beat_shift = dataplane::beat_shift();
    let mut kernel = Kernel::new(&world)?;
    let (_, vip, _) = direct().next().context("no service")?;
    let datagram = Segment::udp(client_of(vip.0), vip).build();
    // The first one ceases to hold whenever it is time for that, and the second one so much later.
    let mut ends = Vec::new();
    for _ in 0..2 {
        for _ in 0..3 {
            kernel.run(&datagram)?;
        }
        kernel.forget_flows()?;
        kernel.recount()?;
        loop {
            kernel.run(&datagram)?;
            if kernel.confirm(Reason::ToBackend).is_err() {
                break;
            }
            // There is nothing to await but time.
            thread::sleep(Duration::from_millis(20));
        }
        ends.push(Instant::now());
    }
    let held = ends[1] - ends[0];
    let jiffy = Duration::from(clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)?);
    let eight = jiffy * (1 << dataplane::beat_shift()) * TRACE_TICKS;
    ensure!(held > eight / 2 && held < eight * 3 / 2, "{held:?} instead of {eight:?}");
    Ok(())
}
