//! Traces of flows whose replies pass through us: who has a place, for how long, and what is seen of others' changes.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use lb_common::{
    abi::{Moment, Tick},
    datapath::{LEAST_TRACED_AGE, REPLY_WAYS, Reason, TRACE_TICKS, TRACE_WAYS, TracePlace},
};
use lb_tests::{
    connection::{Connection, flow_key},
    frame::{Segment, flags},
    host::{BEAT_SHIFT, Host},
    pair::Pair,
    seen::Seen,
    world::{BACKENDS, Socket, VIP, World, backend_address, client_of},
};

/// What becomes of a client's packet that belongs to no flow, and of a backend's.
const UNKNOWN: Reason = Reason::NoFlow;
const UNKNOWN_REPLY: Reason = Reason::NoService;

/// Where a beat is a tick, and there is room for many flows.
fn roomy() -> Host {
    let mut world = World { flows: 65_536, ..World::default() };
    world.settings.beat_shift = BEAT_SHIFT;
    Host::new(&world)
}

/// Opens a connection by a host's tables alone, at a tick.
fn open_alone(host: &Host, client: Socket, tick: u32) -> Result<Connection> {
    host.set_now(at(tick));
    let mut connection = Connection { client, vip: VIP, backend: BACKENDS[0], nat: VIP };
    let outcome = host.run(&Segment::syn(connection.client, VIP).build());
    ensure!(outcome.reason == Reason::Opened, "{outcome:?}");
    let seen = Seen::new(&outcome.frame);
    let mut backends = BACKENDS.into_iter();
    let backend = backends.find(|index| backend_address(*index) == seen.destination);
    (connection.backend, connection.nat) = (backend.context("a backend")?, seen.source);
    for (segment, reason) in
        [(connection.syn_ack(), Reason::ToClient), (connection.ack(), Reason::ToBackend)]
    {
        let outcome = host.run(&segment.build());
        ensure!(outcome.reason == reason, "{outcome:?}");
    }
    Ok(connection)
}

fn at(tick: u32) -> Moment {
    Moment::from_nanoseconds(u64::from(tick) * Tick::NANOSECONDS)
}

#[test]
fn who_leaves_a_trace_sees_what_another_cpu_has_changed() -> Result<()> {
    let host = roomy();
    let connection = open_alone(&host, client_of(VIP.0), 100)?;
    host.set_now(at(100 + LEAST_TRACED_AGE));
    for segment in [connection.from_client(flags::ACK), connection.from_backend(flags::ACK)] {
        host.run(&segment.build());
    }
    ensure!((host.nat_traces(), host.reply_traces()) == (1, 1), "as many as directions");

    for (is_reply, reason) in [(false, Reason::ToBackend), (true, Reason::ToClient)] {
        let host = roomy();
        let connection = open_alone(&host, client_of(VIP.0), 100)?;
        host.set_now(at(100 + LEAST_TRACED_AGE));
        host.reset_flows_when_traced();
        let segment = match is_reply {
            true => connection.from_backend(flags::ACK),
            false => connection.from_client(flags::ACK),
        };
        let outcome = host.run(&segment.build());
        ensure!(outcome.reason == reason, "{outcome:?}");
        ensure!(
            (host.nat_traces(), host.reply_traces()) == (0, 0),
            "what was there before: {reason:?}"
        );
    }
    Ok(())
}

#[test]
fn a_flow_that_is_looked_up_time_and_again_has_one_trace() -> Result<()> {
    let host = roomy();
    let connection = open_alone(&host, client_of(VIP.0), 100)?;
    let mut request = connection.from_client(flags::ACK);
    // No operation, four times (RFC 791, section 3.1).
    request.ip_options = vec![1; 4];
    let request = request.build();
    for tick in 0..TRACE_TICKS {
        host.set_now(at(100 + LEAST_TRACED_AGE + tick));
        ensure!(host.run(&request).reason == Reason::ToBackend);
    }
    ensure!(host.nat_traces() == 1, "{} traces", host.nat_traces());
    Ok(())
}

#[test]
fn a_trace_holds_for_eight_ticks_at_most() -> Result<()> {
    let host = roomy();
    let connection = open_alone(&host, client_of(VIP.0), 100)?;
    let request = connection.from_client(flags::ACK).build();
    host.set_now(at(100 + LEAST_TRACED_AGE));
    ensure!(host.run(&request).reason == Reason::ToBackend);
    host.remove_entries();
    let mut held = 0;
    for tick in 100 + LEAST_TRACED_AGE.. {
        host.set_now(at(tick));
        match host.run(&request).reason {
            Reason::ToBackend => held += 1,
            UNKNOWN => break,
            other => anyhow::bail!("{other:?}"),
        }
    }
    ensure!((1..=8).contains(&held), "for {held} ticks");
    Ok(())
}

/// Opens connections from one port after the other until so many lie at one place, and returns those.
fn crowd(
    host: &Host,
    most: usize,
    place: impl Fn(&Connection) -> u32,
) -> Result<(u32, Vec<Connection>)> {
    let (address, _) = client_of(VIP.0);
    let mut places: HashMap<u32, Vec<Connection>> = HashMap::new();
    for port in 1024..u16::MAX {
        let connection = open_alone(host, (address, port), 100)?;
        let place = place(&connection);
        let there = places.entry(place).or_default();
        there.push(connection);
        if there.len() == most {
            return Ok((place, there.clone()));
        }
    }
    anyhow::bail!("never {most} at one place")
}

/// Demands that, of flows at a place where there is room for all but one, those that come first keep their room as long as it holds.
fn demand_order(host: &Host, place: u32, segments: &[Vec<u8>], reasons: [Reason; 2]) -> Result<()> {
    let [found, unknown] = reasons;
    let begin = (200..208_u32).find(|tick| (tick + place).is_multiple_of(TRACE_TICKS));
    let begin = begin.context("a tick at which they cease to hold")?;
    let orders: [Vec<usize>; 2] = [
        (0..segments.len()).collect(),
        [segments.len() - 1].into_iter().chain(0..segments.len() - 1).collect(),
    ];
    for (tick, order) in [begin, begin + TRACE_TICKS].into_iter().zip(orders) {
        for later in [0, TRACE_TICKS - 1] {
            host.set_now(at(tick + later));
            for number in &order {
                ensure!(host.run(&segments[*number]).reason == found);
            }
        }
        let host = host.clone();
        host.remove_entries();
        for (place, number) in order.into_iter().enumerate() {
            let wanted = if place + 1 < segments.len() { found } else { unknown };
            let reason = host.run(&segments[number]).reason;
            ensure!(reason == wanted, "{tick}, {number}: {reason:?}");
        }
    }
    Ok(())
}

#[test]
fn a_replys_trace_keeps_its_place_as_long_as_it_holds() -> Result<()> {
    let host = roomy();
    let settings = host.world.settings;
    // Of two sets that stand beside each other.
    let (pair, crowded) = crowd(&host, REPLY_WAYS * 2 + 1, |connection| {
        let backend = backend_address(connection.backend);
        TracePlace::of_reply(&flow_key(backend, connection.nat), &settings).set / 2
    })?;
    let reply = |connection: &Connection| connection.from_backend(flags::ACK).build();
    let replies: Vec<Vec<u8>> = crowded.iter().map(reply).collect();
    demand_order(&host, pair, &replies, [Reason::ToClient, UNKNOWN_REPLY])
}

#[test]
fn replies_traces_are_erased_in_both_sets() -> Result<()> {
    let host = roomy();
    let settings = host.world.settings;
    let (_, crowded) = crowd(&host, REPLY_WAYS * 2, |connection| {
        let backend = backend_address(connection.backend);
        TracePlace::of_reply(&flow_key(backend, connection.nat), &settings).set
    })?;
    host.set_now(at(100 + LEAST_TRACED_AGE));
    for connection in &crowded {
        host.run(&connection.from_backend(flags::ACK).build());
    }
    ensure!(host.reply_traces() == crowded.len(), "{}", host.reply_traces());
    for (number, connection) in (1..).zip(&crowded) {
        let outcome = host.run(&connection.from_backend(flags::RST | flags::ACK).build());
        ensure!(outcome.reason == Reason::ToClient, "{outcome:?}");
        ensure!(host.reply_traces() == crowded.len() - number, "{}", host.reply_traces());
    }
    Ok(())
}

#[test]
fn the_sweep_erases_replies_traces_in_both_sets() -> Result<()> {
    // There are two sets, which stand beside each other.
    let mut world = World::default();
    world.settings.nat_trace_mask = 0;
    let mut pair = Pair::new(&world)?;
    pair.within_one_tick(|pair| {
        let settings = pair.host.world.settings;
        let (address, port) = client_of(VIP.0);
        let mut sets: [Vec<Connection>; 2] = Default::default();
        for port in port..port + 2 * REPLY_WAYS as u16 + 1 {
            let connection = Connection::open_from(pair, (address, port), VIP)?;
            connection.establish(pair)?;
            let key = flow_key(backend_address(connection.backend), connection.nat);
            sets[TracePlace::of_reply(&key, &settings).set as usize].push(connection);
        }
        pair.age_flows(LEAST_TRACED_AGE)?;
        let reply = |connection: &Connection| connection.from_backend(flags::ACK).build();
        let crowded = sets.iter().find(|set| set.len() > REPLY_WAYS).context("a crowded set")?;
        let crowded = &crowded[..REPLY_WAYS + 1];
        for connection in crowded {
            pair.expect("looked up", &reply(connection), Reason::ToClient)?;
        }
        ensure!(pair.host.reply_traces() == crowded.len(), "{}", pair.host.reply_traces());
        pair.kernel.sweep_flows()?;
        pair.host.forget_flows();
        for connection in crowded {
            pair.expect("swept", &reply(connection), UNKNOWN_REPLY)?;
        }
        Ok(())
    })
}

#[test]
fn a_trace_keeps_its_place_as_long_as_it_holds() -> Result<()> {
    let host = roomy();
    let settings = host.world.settings;
    let (set, crowded) = crowd(&host, TRACE_WAYS + 1, |connection| {
        TracePlace::of_nat(&flow_key(connection.client, connection.vip), &settings).set
    })?;
    let request = |connection: &Connection| connection.from_client(flags::ACK).build();
    let requests: Vec<Vec<u8>> = crowded.iter().map(request).collect();
    // Two sets that stand beside each other cease to hold at once.
    demand_order(&host, set / 2, &requests, [Reason::ToBackend, UNKNOWN])
}
