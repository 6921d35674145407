//! A flood of spoofed SYNs: established connections go on, new ones are taken, and nothing grows.
//!
//! `LB_FLOOD_SYNS` and `LB_FLOOD_CONNECTIONS` set how many there are (default: 200,000 and 200), and
//! `LB_FLOOD_RATE` how many SYNs there are a second (default: 20,000): all ends share the machine's CPUs, which
//! aren't to be the limit.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_tests::{
    bed::{Bed, SERVICE},
    client::{self, within},
    frame::{Segment, fix_ip_checksum},
};
use lb_userspace::netlink::FrameSender;
use xtask::netns::Namespace;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The index and the hardware address of a namespace's only interface.
fn interface(namespace: &Namespace) -> Result<(u32, [u8; 6])> {
    let text = namespace.ip(&["-o", "link", "show", "eth0"])?;
    let index = text.split(':').next().context("an index")?.trim().parse()?;
    let mac = text.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    let bytes: Result<Vec<u8>, _> =
        mac.context("an address")?.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    Ok((index, bytes?.try_into().map_err(|_| anyhow::anyhow!("not six bytes"))?))
}

/// By how much the flood may be ahead of its rate.
const STEP: Duration = Duration::from_millis(2);

/// Sends SYNs from addresses and ports that nobody has. Returns how many a second.
fn flood(bed: &Bed, syns: usize, most: usize) -> Result<f64> {
    let (index, own) = interface(&bed.client)?;
    let (_, balancer) = interface(&bed.balancer)?;
    let (vip, port) = SERVICE.split_once(':').context("a port")?;
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
                // There is no more room in the interface's queue.
                if error.raw_os_error() != Some(libc::ENOBUFS) {
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

/// Opens connections until `over`, one after the other. Returns how many a second.
fn open(bed: &Bed, over: impl Fn() -> bool) -> Result<f64> {
    let start = Instant::now();
    let mut count = 0;
    while !over() {
        let mut connection = bed.open()?;
        connection.request().context("a new connection")?;
        connection.abort()?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

/// Memory that the controller takes, in kilobytes.
fn memory(bed: &Bed) -> Result<u64> {
    let pid = &bed.json(&["status", "--json"])?["controller"]["pid"];
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    Ok(line.context("VmRSS")?.trim().trim_end_matches(" kB").parse()?)
}

#[test]
fn a_flood_of_syns_harms_no_connection() -> Result<()> {
    let syns = number("LB_FLOOD_SYNS", 200_000);
    let bed = Bed::new(LB, "native", 3)?;
    // A check that is late on a busy machine means nothing here.
    let patient =
        fs::read_to_string(bed.config())?.replace("timeout = \"1s\"", "timeout = \"20s\"");
    fs::write(bed.config(), patient)?;
    bed.lb_ok(&["reload"])?;
    let mut held = client::held(&bed, number("LB_FLOOD_CONNECTIONS", 200))?;
    let before = memory(&bed)?;
    let start = Instant::now();
    let calm = open(&bed, || start.elapsed() > Duration::from_secs(2))?;

    let over = Arc::new(AtomicBool::new(false));
    let (flooded, rate, rounds) = thread::scope(|scope| -> Result<_> {
        let transfer = scope.spawn(|| -> Result<u32> {
            let mut rounds = 0;
            while !over.load(Ordering::Relaxed) {
                for (name, connection) in &mut held {
                    ensure!(connection.request()? == *name, "a connection moved");
                }
                rounds += 1;
            }
            Ok(rounds)
        });
        let opening = scope.spawn(|| open(&bed, || over.load(Ordering::Relaxed)));
        let rate = flood(&bed, syns, number("LB_FLOOD_RATE", 20_000));
        over.store(true, Ordering::Relaxed);
        let rounds = transfer.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        let flooded = opening.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        Ok((flooded, rate?, rounds))
    })?;
    println!(
        "{syns} SYNs, {rate:.0}/s; {} connections exchanged {rounds} requests each meanwhile; new ones \
         {calm:.0}/s before, {flooded:.0}/s in the flood",
        held.len()
    );
    for (name, connection) in &mut held {
        ensure!(connection.request()? == *name, "a connection moved");
    }
    ensure!(rounds > 0 && flooded > 0.0);
    let opened = bed.reason("opened")?;
    ensure!(opened > syns as u64 / 2, "the flood didn't arrive: {opened} opened");
    for reason in ["flow_table_full", "port_collision", "tables_incomplete"] {
        ensure!(bed.reason(reason)? == 0, "{reason}");
    }
    let grown = memory(&bed)?.saturating_sub(before);
    ensure!(grown < 16 << 10, "the controller took {grown} KB more");
    Ok(())
}
