//! Many clients behind one address, and a backend that closes first: its `TIME_WAIT` takes new connections from
//! ports that were used before, since the timestamps that it sees follow one clock.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_tests::{
    bed::{BALANCER, Bed, SERVICE},
    client::{exchange, within},
};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");
/// What nftables translates, beside the service.
const OTHER: &str = "10.91.0.200:8080";
/// Addresses of clients; the kernel shifts the timestamps of each by another amount.
const CLIENTS: u8 = 16;
/// Connections of each run, many times as many as there are ports.
const CONNECTIONS: u64 = 6000;
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
    let to: SocketAddr = to.parse()?;
    let [done, slow, failed] = [(); 3].map(|()| Arc::new(AtomicU64::new(0)));
    let counts = (Arc::clone(&done), Arc::clone(&slow), Arc::clone(&failed));
    let start = Instant::now();
    let work = move || {
        let next_port = Arc::new(AtomicU16::new(0));
        let workers: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (done, slow, failed) = counts.clone();
                let next_port = Arc::clone(&next_port);
                thread::spawn(move || {
                    let from = Ipv4Addr::new(10, 91, 0, 210 + number);
                    while done.fetch_add(1, Ordering::Relaxed) < CONNECTIONS
                        && start.elapsed() < most
                    {
                        let port = 1024 + next_port.fetch_add(1, Ordering::Relaxed) % 60_000;
                        let start = Instant::now();
                        let result = request(from.into(), port, to);
                        failed.fetch_add(result.is_err().into(), Ordering::Relaxed);
                        slow.fetch_add((start.elapsed() > SLOW).into(), Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().map_err(|_| std::io::Error::other("a worker panicked"))?;
        }
        Ok(())
    };
    within(&bed.client, work)?;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Ok(Came {
        done: count(&done).min(CONNECTIONS),
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
        let address = format!("10.91.0.{}/24", 210 + u16::from(number));
        bed.client.ip(&["address", "add", &address, "dev", "eth0"])?;
    }
    let lb = run(&bed, SERVICE, Duration::from_secs(120))?;
    let refused = refused_by_time_wait(&bed)?;
    println!("lb: {}, PAWSTimewait {refused}", lb.words());

    // The same by nftables, between the same client and backend.
    bed.balancer.ip(&["address", "add", "10.91.0.200/32", "dev", "eth0"])?;
    bed.balancer.run("sysctl", &["-qw", "net.ipv4.ip_forward=1"])?;
    let mut rules = String::from("table ip nat {\n");
    writeln!(rules, " chain pre {{ type nat hook prerouting priority -100;")?;
    writeln!(rules, "  ip daddr 10.91.0.200 tcp dport 8080 dnat to 10.91.0.101:8080\n }}")?;
    writeln!(rules, " chain post {{ type nat hook postrouting priority 100;")?;
    writeln!(rules, "  ip daddr 10.91.0.101 tcp dport 8080 snat to {BALANCER}:{first}-{last}")?;
    writeln!(rules, " }}\n}}")?;
    let file = bed.config().with_extension("nft");
    std::fs::write(&file, rules)?;
    bed.balancer.run("nft", &["-f", file.to_str().context("UTF-8")?])?;
    let nftables = run(&bed, OTHER, Duration::from_secs(15))?;
    let by_nftables = refused_by_time_wait(&bed)? - refused;
    println!("nftables: {}, PAWSTimewait {by_nftables}", nftables.words());

    ensure!(refused == 0 && lb.slow == 0 && lb.failed == 0, "{lb:?}, PAWSTimewait {refused}");
    ensure!(by_nftables > 0, "nftables met none either: the test shows nothing");
    ensure!(bed.reason("nat_ports_exhausted")? == 0);
    Ok(())
}
