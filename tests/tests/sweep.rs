//! What it costs to look through a table of very many flows, and that it forgets those that are over and no
//! others.
//!
//! `LB_SWEEP_FLOWS` sets how many flows there are (default: a million).

use std::{
    fs,
    io::ErrorKind,
    net::Ipv4Addr,
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_common::{
    abi::{Flow, FlowKey, FlowState},
    datapath::Table,
    wire::{Ipv4Address, NetworkU16},
};
use lb_tests::{bed::Bed, client::Connection, setting, wait::wait_until};
use lb_userspace::dataplane::{self, Maps, Pins};
use nix::sys::signal::Signal;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");
/// Of these, one connection is closed.
const PART: u32 = 100;

type Entry = (FlowKey<Ipv4Address>, Flow<Ipv4Address>);

/// Both entries of another flow like one that is there.
fn another([request, reply]: [Entry; 2], number: u32) -> [Entry; 2] {
    let address = |network: u32| Ipv4Addr::from(network + number / 50_000).into();
    let port = NetworkU16::new(1024 + (number % 50_000) as u16);
    let (client, backend) = (address(0xc612_0000), address(0xc613_0000));
    let [mut request, mut reply] = [request, reply];
    (request.0.source, request.0.source_port) = (client, port);
    (reply.1.destination, reply.1.destination_port) = (client, port);
    (request.1.destination, request.1.source_port) = (backend, port);
    (reply.0.source, reply.0.destination_port) = (backend, port);
    for (_, flow) in [&mut request, &mut reply] {
        flow.state =
            if number.is_multiple_of(PART) { FlowState::CLOSED } else { FlowState::ESTABLISHED };
    }
    [request, reply]
}

/// CPU time that a process's thread of that name has taken so far.
fn cpu_time(process: u64, name: &str) -> Result<Duration> {
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim() == name {
            // Nanoseconds on a CPU come first (kernel: Documentation/scheduler/sched-stats.rst).
            let text = fs::read_to_string(task.join("schedstat"))?;
            let nanoseconds = text.split(' ').next().context("schedstat")?.parse()?;
            return Ok(Duration::from_nanos(nanoseconds));
        }
    }
    anyhow::bail!("{process} has no thread {name}")
}

/// A network whose balancer has room for so many flows, and has one.
struct Crowd {
    bed: Bed,
    held: Connection,
    maps: Maps,
    /// Both entries of that flow.
    model: [Entry; 2],
}

/// A network whose balancer has room for so many flows, and has one. The controller has stopped.
fn crowd(room: u32) -> Result<Crowd> {
    let mut bed = Bed::without_controller(LB, "native", 1)?;
    bed.write_config("")?;
    let text = fs::read_to_string(bed.config())?;
    let room = format!("flows = {room}\n");
    fs::write(bed.config(), text.replacen("flows = 65536\n", &room, 1))?;
    bed.start_controller(&[])?;
    bed.wait_for_up(1)?;
    let mut held = bed.open()?;
    held.request()?;
    bed.stop_controller(Signal::SIGTERM)?;

    let maps = Maps::open(&Pins::new(bed.pins()))?;
    let mut there: Vec<Entry> = Vec::new();
    maps.ipv4.for_each(Table::Established, |key, flow| {
        if key.source_port == NetworkU16::new(8080) || key.destination_port == NetworkU16::new(8080)
        {
            there.push((*key, *flow));
        }
    })?;
    there.sort_by_key(|(_, flow)| flow.direction);
    let request = *there.first().context("an entry")?;
    let peer = request.1.peer_key(request.0.protocol);
    let reply = *there.iter().find(|(key, _)| *key == peer).context("its other direction's")?;
    Ok(Crowd { bed, held, maps, model: [request, reply] })
}

impl Crowd {
    /// Adds flows, by number.
    fn add(&mut self, flows: Range<u32>) -> Result<()> {
        let table = self.maps.ipv4.flows_mut(Table::Established);
        for number in flows {
            for (key, flow) in another(self.model, number) {
                table.insert(key, flow, 0)?;
            }
        }
        Ok(())
    }
}

#[test]
fn looking_through_many_flows_takes_a_small_part_of_a_cpu() -> Result<()> {
    let flows: u32 = setting("LB_SWEEP_FLOWS", 1_000_000);
    let mut crowd = crowd(flows + flows / 10)?;
    crowd.add(0..flows)?;
    let Crowd { mut bed, mut held, maps, model: [(_, seen), _] } = crowd;
    wait_until("closed flows are over", || {
        Ok(dataplane::seconds(dataplane::now().since(seen.last_seen)) >= 4)
    })?;

    bed.start_controller(&[])?;
    let start = Instant::now();
    let process = bed.controller_pid()?;
    wait_until("closed flows are forgotten", || {
        let closed = bed.json(&["list", "flows", "--state", "closed", "--json"])?;
        Ok(closed.as_array().is_some_and(Vec::is_empty))
    })?;
    let once = cpu_time(process, "sweep")?;
    held.request()?;
    let (entries, room) = maps.ipv4.usage(Table::Established)?;
    ensure!(entries >= 2 * (flows - flows / PART), "{entries} entries");
    println!("{flows} flows: {once:?} of CPU time for a round, done after {:?}", start.elapsed());
    // Most of the time until the next round.
    let window = once * 30;
    thread::sleep(window.saturating_sub(start.elapsed()));
    let (took, passed) = (cpu_time(process, "sweep")?, start.elapsed());
    let share = took.as_secs_f64() / passed.as_secs_f64();
    println!("{took:?} of {passed:?}: {:.1}% of a CPU", share * 100.0);
    ensure!(share < 0.05, "{took:?} of {passed:?}");
    let shown = bed.json(&["list", "maps", "--json"])?;
    let tables: Vec<_> = shown.as_array().into_iter().flatten().map(|map| &map["bytes"]).collect();
    let bytes: u64 = tables.iter().filter_map(|bytes| bytes.as_u64()).sum();
    println!(
        "room for {room} entries: all maps take {} MB, the controller {} MB",
        bytes >> 20,
        bed.controller_memory()? >> 10
    );
    Ok(())
}

#[test]
fn a_table_that_fills_up_is_warned_of_and_a_full_one_refuses_at_once() -> Result<()> {
    const ROOM: u32 = 2000;
    let mut crowd = crowd(ROOM)?;
    crowd.bed.start_controller(&[])?;
    for (reached, flows) in [(80, 0..1700), (95, 1700..1950)] {
        crowd.add(flows)?;
        wait_until("it is warned of", || {
            let events = crowd.bed.lb_ok(&["events", "--json"])?;
            let mut percents = events.lines().filter_map(|line| {
                let event: serde_json::Value = serde_json::from_str(line).ok()?;
                let is_it = event["level"] == "WARN" && event["table"] == "established";
                is_it.then(|| event["percent"].as_u64())?
            });
            Ok(percents.next_back() >= Some(reached))
        })?;
    }

    // Until there is no room.
    let more = (1950..).find(|number| crowd.add(*number..number + 1).is_err());
    ensure!(more.is_some_and(|more| more > 1950));
    // The reset may come before the client knows that it is connected.
    let result = crowd.bed.open().and_then(|mut connection| connection.request());
    let error = result.expect_err("there is no room");
    let error = error.downcast::<std::io::Error>()?;
    ensure!(error.kind() == ErrorKind::ConnectionReset, "{error:?}");
    ensure!(crowd.bed.reason("flow_table_full")? > 0);
    crowd.held.request()?;
    Ok(())
}
