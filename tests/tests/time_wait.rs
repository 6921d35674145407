//! Many clients behind one address, and a backend that closes first: its `TIME_WAIT` takes new connections from
//! ports that were used before, since the timestamps that it sees follow one clock.
//!
//! `LB_TIME_WAIT_CONNECTIONS` sets how many connections there are (default: 6000), and `LB_TIME_WAIT_RATE` how
//! many of them at most a second (default: 20,000).

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    ops::ControlFlow,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_tests::{
    bed::{Bed, SERVICE},
    client::{at_pace, exchange},
    rivals::{self, NFTABLES},
    setting,
};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");
/// Addresses of clients; the kernel shifts the timestamps of each by another amount.
const CLIENTS: u32 = 16;
/// The ports that both send from.
const PORTS: (u16, u16) = (20_000, 20_499);
/// What nobody waits for unless a SYN was lost.
const SLOW: Duration = Duration::from_millis(900);

/// What came of many connections.
#[derive(Debug)]
struct Came {
    done: u64,
    slow: u64,
    failed: u64,
    took: Duration,
}

impl Came {
    fn words(&self) -> String {
        let Self { done, slow, failed, took } = self;
        format!("{done} connections in {took:.1?}, {slow} slow, {failed} failed")
    }
}

/// Does a request whose answer's end is that of the connection, from one of the clients' addresses.
fn request(from: IpAddr, port: u16, to: SocketAddr) -> Result<()> {
    let (IpAddr::V4(from), SocketAddr::V4(to)) = (from, to) else { anyhow::bail!("IPv4") };
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    let own = SockaddrIn::from(SocketAddrV4::new(from, port));
    bind(socket.as_raw_fd(), &own)?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
    exchange(TcpStream::from(socket))
}

/// Does many of them, some at a time, until they are done or `most` is over.
fn run(bed: &Bed, to: &'static str, most: Duration) -> Result<Came> {
    let connections: u64 = setting("LB_TIME_WAIT_CONNECTIONS", 6000);
    let interval = Duration::from_secs(1) / setting("LB_TIME_WAIT_RATE", 20_000);
    let to: SocketAddr = to.parse()?;
    let [done, slow, failed] = [(); 3].map(|()| Arc::new(AtomicU64::new(0)));
    let counts = (Arc::clone(&done), Arc::clone(&slow), Arc::clone(&failed));
    let start = Instant::now();
    let work = move |number: u32| {
        if u64::from(number) >= connections || start.elapsed() > most {
            return ControlFlow::Break(());
        }
        let (done, slow, failed) = &counts;
        let from = Ipv4Addr::new(10, 91, 0, 210 + (number % CLIENTS) as u8);
        let port = 1024 + (number % 60_000) as u16;
        let start = Instant::now();
        let result = request(from.into(), port, to);
        done.fetch_add(1, Ordering::Relaxed);
        failed.fetch_add(result.is_err().into(), Ordering::Relaxed);
        slow.fetch_add((start.elapsed() > SLOW).into(), Ordering::Relaxed);
        ControlFlow::Continue(())
    };
    at_pace(&bed.client, CLIENTS, interval, work)?;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Ok(Came {
        done: count(&done),
        slow: count(&slow),
        failed: count(&failed),
        took: start.elapsed(),
    })
}

/// The backend's count of SYNs that it took for old ones.
fn refused_by_time_wait(bed: &Bed) -> Result<u64> {
    let text = bed.on_backend("mgmt01", "cat", &["/proc/net/netstat"])?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
    let counts: BTreeMap<&str, &str> = names.split(' ').zip(values.split(' ')).collect();
    Ok(counts.get("PAWSTimewait").context("PAWSTimewait")?.parse()?)
}

#[test]
fn time_wait_at_the_backend_refuses_nobody_as_it_does_behind_nftables() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 1)?;
    let (first, last) = PORTS;
    bed.write_config_of(&format!(
        "[nat]\nports = \"{first}-{last}\"\n[[service]]\nname = \"ui\"\nbind = [\"{SERVICE}\"]\n\
         [service.check]\ntype = \"tcp\"\ninterval = \"10s\"\n[[service.backend]]\n\
         name = \"mgmt01\"\naddress = \"10.91.0.101:8080\"\n"
    ))?;
    bed.start_controller(&[])?;
    bed.wait_for_up(1)?;
    for number in 0..CLIENTS {
        let address = format!("10.91.0.{}/24", 210 + number);
        bed.client.ip(&["address", "add", &address, "dev", "eth0"])?;
    }
    // For some seven seconds, instead of two minutes.
    bed.client.run("sysctl", &["-qw", "net.ipv4.tcp_syn_retries=2"])?;
    let lb = run(&bed, SERVICE, Duration::from_secs(300))?;
    let refused = refused_by_time_wait(&bed)?;
    println!("lb: {}, PAWSTimewait {refused}", lb.words());

    // The same by nftables, between the same client and backend.
    rivals::nftables(&bed, &["mgmt01"], PORTS)?;
    let nftables = run(&bed, NFTABLES, Duration::from_secs(15))?;
    let by_nftables = refused_by_time_wait(&bed)? - refused;
    println!("nftables: {}, PAWSTimewait {by_nftables}", nftables.words());

    ensure!(refused == 0 && lb.slow == 0 && lb.failed == 0, "{lb:?}, PAWSTimewait {refused}");
    ensure!(by_nftables > 0, "nftables met none either: the test shows nothing");
    ensure!(bed.reason("nat_ports_exhausted")? == 0);
    Ok(())
}
