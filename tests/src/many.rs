//! Very many backends, of which one host has all addresses.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sched::{CpuSet, sched_setaffinity},
    sys::socket::{Backlog, listen},
    unistd::{Pid, SysconfVar, sysconf},
};
use serde_json::Value;
use xtask::netns::Namespace;

use crate::{bed::Bed, client::within, wait::wait_until};

/// Time between two checks of a backend.
pub const INTERVAL: Duration = Duration::from_secs(2);
/// Backends of a service.
pub const OF_A_SERVICE: usize = 100;
/// The first of the backends' addresses, which one host has all of.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const NETWORK: &str = "10.96.0.0/12";

/// A network with one real backend, and a host behind a router that has the addresses of all others.
///
/// # Errors
///
/// The user may not make it.
pub fn bed(lb: &str) -> Result<Bed> {
    let bed = Bed::without_controller(lb, "native", 1)?;
    bed.on_backend("mgmt01", "ip", &["route", "add", "local", NETWORK, "dev", "lo"])?;
    bed.balancer.ip(&["route", "add", NETWORK, "via", bed.backend_address("mgmt01")?])?;
    Ok(bed)
}

/// The CPU that the controller has for itself, where there is another one for everybody else.
const ITS_CPU: usize = 0;

/// The CPUs for everybody else.
fn other_cpus() -> Result<Vec<usize>> {
    let all = thread::available_parallelism()?.get().min(32);
    Ok((0..all).filter(|cpu| *cpu != ITS_CPU).collect())
}

/// Services with backends on addresses of their own.
pub fn services(count: usize, of_each: usize, check: &str) -> String {
    let mut text = String::new();
    let mut address = u32::from(FIRST);
    for number in 0..count {
        text += &format!(
            "[[service]]\nname = \"many{number}\"\nbind = [\"10.91.0.100:{}\"]\n[service.check]\n{check}\n",
            10_000 + number
        );
        for backend in 0..of_each {
            let ip = Ipv4Addr::from(address);
            text +=
                &format!("[[service.backend]]\nname = \"b{backend}\"\naddress = \"{ip}:8081\"\n");
            address += 1;
        }
    }
    text
}

/// Threads that answer, so that one which waits for a request keeps nobody else waiting.
const THREADS: usize = 16;

/// Checks that came in: when, and to which address.
pub type Seen = Arc<Mutex<Vec<(Instant, IpAddr)>>>;

/// Answers every check on a port of a namespace, until `over`.
///
/// # Errors
///
/// It can't listen.
pub fn answer_checks(namespace: &Namespace, over: &Arc<AtomicBool>) -> Result<Seen> {
    let listener = within(namespace, || TcpListener::bind("0.0.0.0:8081"))?;
    listen(&listener, Backlog::new(4096)?)?;
    // A thread is woken once there is a request, and not before (tcp(7)).
    let seconds: libc::c_int = 1;
    // SAFETY: the option's value is an int, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            size_of_val(&seconds) as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    let seen = Seen::default();
    let shared = Arc::clone(&seen);
    let answer = move |mut stream: TcpStream| -> std::io::Result<()> {
        let now = Instant::now();
        stream.set_read_timeout(Some(INTERVAL))?;
        let count = stream.read(&mut [0; 1024])?;
        let ip = stream.local_addr()?.ip();
        if count > 0 {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
            shared.lock().map_err(|_| std::io::Error::other("poisoned"))?.push((now, ip));
        }
        Ok(())
    };
    let answer = Arc::new(answer);
    for _ in 0..THREADS {
        let (listener, answer, over) =
            (listener.try_clone()?, Arc::clone(&answer), Arc::clone(over));
        let mut cpus = CpuSet::new();
        let others = other_cpus()?;
        others.iter().try_for_each(|cpu| cpus.set(*cpu))?;
        thread::spawn(move || {
            if !others.is_empty() {
                let pinned = sched_setaffinity(Pid::from_raw(0), &cpus);
                if let Err(error) = pinned {
                    eprintln!("a thread stays where it is: {error}");
                }
            }
            while !over.load(Ordering::Relaxed) {
                let answered = listener.accept().and_then(|(stream, _)| answer(stream));
                if let Err(error) = answered {
                    eprintln!("a check that came in: {error}");
                }
            }
        });
    }
    Ok(seen)
}

/// Processor time that a process has taken.
///
/// # Errors
///
/// It isn't there.
pub fn processor_time(process: u64) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("a name")?;
    // utime and stime, of proc_pid_stat(5).
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).map(|field| field.parse().unwrap_or(0)).sum();
    let a_second = sysconf(SysconfVar::CLK_TCK)?.context("CLK_TCK")?;
    Ok(Duration::from_secs_f64(ticks as f64 / a_second as f64))
}

/// Starts a controller that has one CPU, with services of so many checked backends in all, and waits until all are up.
///
/// # Errors
///
/// It doesn't start, or one isn't.
pub fn start_on_one_cpu(bed: &mut Bed, lb: &str, count: usize) -> Result<()> {
    let of_each = count.min(OF_A_SERVICE);
    let check = "interval = \"2s\"\ntimeout = \"2s\"";
    bed.write_config_of(&services(count / of_each, of_each, check))?;
    let log = fs::File::create(bed.log())?;
    let mut command = bed.balancer.command("taskset");
    command.args(["-c", &ITS_CPU.to_string(), lb, "run", "-c"]).arg(bed.config());
    command.stdout(log.try_clone()?).stderr(log);
    bed.spawn_controller(&mut command)?;
    wait_until("all are up", || {
        let services = bed.json(&["list", "services", "--json"])?;
        let up = |service: &Value| service["backends_up"].as_u64().unwrap_or(0);
        let up: u64 = services.as_array().into_iter().flatten().map(up).sum();
        Ok(up == count as u64)
    })
    .with_context(|| fs::read_to_string(bed.log()).unwrap_or_default())
}
