//! A flood of spoofed SYNs: established connections go on, new ones are taken, and nothing grows. The same behind
//! HAProxy and nftables, to compare.
//!
//! `LB_FLOOD_SYNS` and `LB_FLOOD_CONNECTIONS` set how many there are (default: 100,000 and 200), and
//! `LB_FLOOD_RATE` how many SYNs there are a second (default: 20,000). All ends share the machine's CPUs, which
//! aren't to be the limit: so are requests over the established connections, `LB_FLOOD_REQUESTS` a second
//! (default: 400), and new connections, `LB_FLOOD_OPENINGS` a second (default: 200).

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    ops::ControlFlow,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_tests::{
    bed::{Bed, SERVICE},
    client::{self, Connection, within},
    frame::{Segment, fix_ip_checksum},
    rivals::{self, HAPROXY, Haproxy, NFTABLES},
    setting,
};
use lb_userspace::netlink::FrameSender;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");
const BACKENDS: [&str; 3] = ["mgmt01", "mgmt02", "mgmt03"];

/// By how much the flood may be ahead of its rate.
const STEP: Duration = Duration::from_millis(2);

/// Sends SYNs from addresses and ports that nobody has. Returns how many a second.
fn flood(bed: &Bed, to: &str, syns: usize) -> Result<f64> {
    let most: usize = setting("LB_FLOOD_RATE", 20_000);
    let (index, own) = client::interface(&bed.client)?;
    let (_, balancer) = client::interface(&bed.balancer)?;
    let (vip, port) = to.split_once(':').context("a port")?;
    let vip = (vip.parse::<IpAddr>()?, port.parse()?);
    let mut segment = Segment::syn((Ipv4Addr::new(198, 18, 0, 1).into(), 1), vip);
    (segment.source_mac, segment.destination_mac) = (own, balancer);
    segment.transport_checksum_error = 0;
    let mut frame = segment.build();
    let start = Instant::now();
    let work = move || {
        let sender = FrameSender::new()?;
        let mut random = fastrand::Rng::new();
        for number in 0..syns {
            let due = Duration::from_secs_f64(number as f64 / most as f64);
            if let Some(early) = due.checked_sub(start.elapsed()).filter(|early| *early > STEP) {
                thread::sleep(early);
            }
            // Backends answer nothing whose checksum is wrong: it is kept right.
            let (high, port) = (random.u16(..), random.u16(1024..));
            let old =
                [26, 28, 34].map(|at| u32::from(u16::from_be_bytes([frame[at], frame[at + 1]])));
            frame[28..30].copy_from_slice(&high.to_be_bytes());
            frame[34..36].copy_from_slice(&port.to_be_bytes());
            let new =
                [26, 28, 34].map(|at| u32::from(u16::from_be_bytes([frame[at], frame[at + 1]])));
            let checksum = u16::from_be_bytes([frame[50], frame[51]]);
            let mut sum = u32::from(!checksum);
            for (old, new) in old.into_iter().zip(new) {
                sum += (!old & 0xffff) + new;
            }
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            frame[50..52].copy_from_slice(&(!(sum as u16)).to_be_bytes());
            fix_ip_checksum(&mut frame);
            while let Err(error) = sender.send(index, &frame) {
                // There is no more room in the interface's queue, or in the socket's.
                let full = [libc::ENOBUFS, libc::EAGAIN].map(Some);
                if !full.contains(&error.raw_os_error()) {
                    return Err(error);
                }
                thread::yield_now();
            }
        }
        Ok(())
    };
    within(&bed.client, work)?;
    Ok(syns as f64 / start.elapsed().as_secs_f64())
}

/// What came of new connections.
#[derive(Clone, Debug, Default)]
struct Opened {
    done: u32,
    failed: u32,
    /// Those that took longer than half a second: a packet of theirs was lost.
    slow: u32,
    /// Those that were done in time, a second.
    rate: f64,
}

/// Who opens connections, next to one another.
const OPENERS: u32 = 8;

/// Opens connections at a steady pace until `over`, and does a request over each.
fn open(bed: &Bed, to: &str, over: &Arc<AtomicBool>) -> Result<Opened> {
    let to = to.parse()?;
    let interval = Duration::from_secs(1) / setting("LB_FLOOD_OPENINGS", 200);
    let opened = Arc::new(Mutex::new(Opened::default()));
    let (over, shared) = (Arc::clone(over), Arc::clone(&opened));
    let start = Instant::now();
    let work = move |_| {
        if over.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        let began = Instant::now();
        let result = Connection::connect(to).map_err(Into::into).and_then(|mut connection| {
            connection.request()?;
            connection.abort()
        });
        let mut opened = shared.lock().expect("nobody panics with it");
        opened.done += u32::from(result.is_ok());
        opened.failed += u32::from(result.is_err());
        opened.slow += u32::from(began.elapsed() > Duration::from_millis(500));
        if !over.load(Ordering::Relaxed) {
            opened.rate = f64::from(opened.done) / start.elapsed().as_secs_f64();
        }
        ControlFlow::Continue(())
    };
    client::at_pace(&bed.client, OPENERS, interval, work)?;
    Ok(opened.lock().map_err(|_| anyhow::anyhow!("panicked"))?.clone())
}

/// Each of them takes two of its file descriptors.
const MOST_BY_HAPROXY: usize = 8000;

/// For how long connections are looked at after the flood.
const LOOK: Duration = Duration::from_secs(60);

/// For how long connections are opened without a flood.
const CALM: Duration = Duration::from_secs(3);

/// What a flood did to those behind a balancer.
#[derive(Debug)]
struct Harm {
    /// Established connections that broke.
    broken: usize,
    /// Those that weren't looked at any more.
    unseen: usize,
    calm: Opened,
    flooded: Opened,
}

/// Floods an address, over which there are connections, no more than `most`.
fn harm(bed: &Bed, name: &str, to: &str, most: usize) -> Result<Harm> {
    let count = most.min(setting("LB_FLOOD_CONNECTIONS", 200));
    let syns = setting("LB_FLOOD_SYNS", 100_000);
    let interval = Duration::from_secs(1) / setting("LB_FLOOD_REQUESTS", 400);
    let mut held = client::held_to(bed, to, count)?;
    let mut broken = vec![false; held.len()];
    let over = Arc::new(AtomicBool::new(false));
    let mut request = |number: usize| {
        let (name, connection) = &mut held[number];
        broken[number] |= !connection.request().is_ok_and(|answer| answer == *name);
    };
    let calm = thread::scope(|scope| {
        let opening = scope.spawn(|| open(bed, to, &over));
        thread::sleep(CALM);
        over.store(true, Ordering::Relaxed);
        opening.join().map_err(|_| anyhow::anyhow!("panicked"))?
    })?;

    over.store(false, Ordering::Relaxed);
    let (rate, flooded, requests) = thread::scope(|scope| -> Result<_> {
        let transfer = scope.spawn(|| {
            let start = Instant::now();
            let mut requests: u32 = 0;
            while !over.load(Ordering::Relaxed) {
                request(requests as usize % count);
                requests += 1;
                thread::sleep((interval * requests).saturating_sub(start.elapsed()));
            }
            requests
        });
        let opening = scope.spawn(|| open(bed, to, &over));
        let rate = flood(bed, to, syns);
        over.store(true, Ordering::Relaxed);
        let requests = transfer.join().map_err(|_| anyhow::anyhow!("panicked"))?;
        let flooded = opening.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        Ok((rate?, flooded, requests))
    })?;
    // Each of them once more, unless very many are broken, each of which is waited for in vain.
    let mut looked_at = 0;
    let end = Instant::now() + LOOK;
    while looked_at < count && Instant::now() < end {
        request(looked_at);
        looked_at += 1;
    }
    let broken = broken.iter().filter(|broken| **broken).count();
    println!(
        "{name}: {syns} SYNs, {rate:.0}/s; {count} connections, {requests} requests, {broken} broken of \
         {looked_at} looked at; new ones before: {calm:.1?}, in the flood: {flooded:.1?}, {:.0}% of the rate",
        flooded.rate / calm.rate * 100.0
    );
    ensure!(requests > 0 && flooded.done > 0, "{name} took nothing");
    Ok(Harm { broken, unseen: count - looked_at, calm, flooded })
}

#[test]
fn a_flood_of_syns_harms_no_connection() -> Result<()> {
    let bed = Bed::new(LB, "native", 3)?;
    // A check that is late on a busy machine means nothing here.
    let patient =
        fs::read_to_string(bed.config())?.replace("timeout = \"1s\"", "timeout = \"20s\"");
    fs::write(bed.config(), patient)?;
    bed.lb_ok(&["reload"])?;
    let before = bed.controller_memory()?;
    let harm_done = harm(&bed, "lb", SERVICE, usize::MAX)?;
    let grown = bed.controller_memory()?.saturating_sub(before);

    // The same behind others. Their answers to nobody need a way out.
    bed.balancer.ip(&["route", "add", "198.18.0.0/16", "via", "10.91.0.1"])?;
    let guard = Haproxy::start(&bed, &BACKENDS)?;
    harm(&bed, "HAProxy", HAPROXY, MOST_BY_HAPROXY)?;
    drop(guard);
    rivals::nftables(&bed, &BACKENDS, (1024, 65_535))?;
    harm(&bed, "nftables", NFTABLES, usize::MAX)?;

    ensure!(harm_done.broken == 0 && harm_done.unseen == 0, "{harm_done:?}");
    ensure!(harm_done.calm.failed == 0 && harm_done.flooded.failed == 0, "{harm_done:?}");
    let opened = bed.reason("opened")?;
    let syns: u64 = setting("LB_FLOOD_SYNS", 100_000);
    ensure!(opened > syns / 2, "the flood didn't arrive: {opened} opened");
    for reason in ["flow_table_full", "port_collision", "tables_incomplete"] {
        ensure!(bed.reason(reason)? == 0, "{reason}");
    }
    ensure!(grown < 16 << 10, "the controller took {grown} KB more");
    Ok(())
}
