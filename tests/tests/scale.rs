//! Many backends: each is checked whenever it is due, and a change among them is quick and disturbs nobody.
//!
//! `LB_SCALE_BACKENDS` sets how many are checked (default: 1,000), and `LB_SCALE_SERVICES` how many services of a hundred
//! backends are reloaded (default: 100).

use std::{
    collections::HashMap,
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

use anyhow::{Context, Result, ensure};
use lb_tests::{bed::Bed, client::within, setting, under_traffic, wait::wait_until};
use nix::{
    errno::Errno,
    sched::{CpuSet, sched_setaffinity},
    sys::socket::{Backlog, listen},
    unistd::{Pid, SysconfVar, sysconf},
};
use serde_json::Value;
use xtask::netns::Namespace;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");
/// Each test has the machine for itself, as far as the other is concerned.
static TURN: Mutex<()> = Mutex::new(());
/// Time between two checks of a backend.
const INTERVAL: Duration = Duration::from_secs(2);
/// How many intervals are watched.
const ROUNDS: u32 = 5;
/// Backends of a service.
const OF_A_SERVICE: usize = 100;
/// The first of the backends' addresses, which one host has all of.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const NETWORK: &str = "10.96.0.0/12";

/// A network with one real backend, and a host behind a router that has the addresses of all others.
fn bed() -> Result<Bed> {
    let bed = Bed::without_controller(LB, "native", 1)?;
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
fn services(count: usize, of_each: usize, check: &str) -> String {
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
type Seen = Arc<Mutex<Vec<(Instant, IpAddr)>>>;

/// Answers every check on a port of a namespace, until `over`.
fn answer_checks(namespace: &Namespace, over: &Arc<AtomicBool>) -> Result<Seen> {
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
                sched_setaffinity(Pid::from_raw(0), &cpus).expect("they are there");
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
fn processor_time(process: u64) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("a name")?;
    // utime and stime, of proc_pid_stat(5).
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).map(|field| field.parse().unwrap_or(0)).sum();
    let a_second = sysconf(SysconfVar::CLK_TCK)?.context("CLK_TCK")?;
    Ok(Duration::from_secs_f64(ticks as f64 / a_second as f64))
}

#[test]
fn many_backends_are_each_checked_when_due() -> Result<()> {
    let count: usize = setting("LB_SCALE_BACKENDS", 1000);
    let _turn = TURN.lock();
    let over = Arc::new(AtomicBool::new(false));
    let mut bed = bed()?;
    let seen = answer_checks(bed.backend_namespace("mgmt01")?, &over)?;
    let check = "interval = \"2s\"\ntimeout = \"2s\"";
    let of_each = count.min(OF_A_SERVICE);
    bed.write_config_of(&services(count / of_each, of_each, check))?;
    // One CPU is enough for all of it.
    let log = fs::File::create(bed.log())?;
    let mut command = bed.balancer.command("taskset");
    command.args(["-c", &ITS_CPU.to_string(), LB, "run", "-c"]).arg(bed.config());
    command.stdout(log.try_clone()?).stderr(log);
    bed.spawn_controller(&mut command)?;
    wait_until("all are up", || {
        let services = bed.json(&["list", "services", "--json"])?;
        let up = |service: &Value| service["backends_up"].as_u64().unwrap_or(0);
        let up: u64 = services.as_array().into_iter().flatten().map(up).sum();
        Ok(up == count as u64)
    })
    .with_context(|| fs::read_to_string(bed.log()).unwrap_or_default())?;

    // One round more: in the first one they find their places.
    let process = bed.controller_pid()?;
    let start = Instant::now() + INTERVAL;
    thread::sleep(INTERVAL);
    let before = processor_time(process)?;
    let end = start + INTERVAL * ROUNDS;
    wait_until("the last round is over", || {
        let seen = seen.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
        Ok(seen.last().is_some_and(|(when, _)| *when >= end))
    })?;
    let used = processor_time(process)? - before;
    let watched = start.elapsed();
    let seen = std::mem::take(&mut *seen.lock().map_err(|_| anyhow::anyhow!("poisoned"))?);
    over.store(true, Ordering::Relaxed);

    let mut checks: HashMap<IpAddr, Vec<Instant>> = HashMap::new();
    let tenth = INTERVAL / 20;
    let mut tenths = vec![0u32; (ROUNDS * 20) as usize];
    for (when, ip) in seen.into_iter().filter(|(when, _)| (start..end).contains(when)) {
        checks.entry(ip).or_default().push(when);
        tenths[((when - start).as_nanos() / tenth.as_nanos()) as usize] += 1;
    }
    ensure!(checks.len() == count, "{} of {count} were checked", checks.len());
    let gaps = checks.values().flat_map(|times| times.windows(2).map(|pair| pair[1] - pair[0]));
    let (longest, shortest) = gaps
        .fold((Duration::ZERO, Duration::MAX), |(longest, shortest), gap| {
            (longest.max(gap), shortest.min(gap))
        });
    let total: u32 = tenths.iter().sum();
    let mean = f64::from(total) / tenths.len() as f64;
    let busiest = tenths.iter().max().context("no time")?;
    println!(
        "{count} backends, {total} checks in {ROUNDS} intervals of {INTERVAL:?}: {shortest:?} to {longest:?} apart; \
         {busiest} in the busiest {tenth:?}, {mean:.0} on average; {:.0}% of one CPU, {} MB",
        used.as_secs_f64() / watched.as_secs_f64() * 100.0,
        bed.controller_memory()? / 1024
    );
    // Twice as long would mean one was left out.
    ensure!(longest < INTERVAL * 2, "an interval was missed: {longest:?}");
    ensure!(total as usize >= count * (ROUNDS as usize - 1), "{total} checks");
    ensure!(f64::from(*busiest) < mean * 4.0 + 20.0, "not spread evenly: {tenths:?}");
    Ok(())
}

#[test]
fn many_services_are_reloaded_without_a_gap() -> Result<()> {
    let count: usize = setting("LB_SCALE_SERVICES", 100);
    let _turn = TURN.lock();
    let mut bed = bed()?;
    let many = services(count, OF_A_SERVICE, "type = \"none\"");
    bed.write_config(&many)?;
    let start = Instant::now();
    bed.start_controller(&[])?;
    println!("{count} services of {OF_A_SERVICE}: started after {:?}", start.elapsed());
    bed.wait_for_up(1)?;
    let result = under_traffic(&mut bed, |bed| {
        let weight = many.replacen("name = \"b7\"\n", "name = \"b7\"\nweight = 2\n", 1);
        let fewer = services(count - 1, OF_A_SERVICE, "type = \"none\"");
        for (what, text) in [
            ("nothing", &many),
            ("a weight", &weight),
            ("a service less", &fewer),
            ("and again", &many),
        ] {
            bed.write_config(text)?;
            let start = Instant::now();
            let said = bed.lb_ok(&["reload"])?;
            println!(
                "reload ({what}): {:?}, {}",
                start.elapsed(),
                said.lines().next().unwrap_or("")
            );
            ensure!(said.contains("reloaded") || said.contains("nothing"), "{said}");
        }
        Ok(())
    });
    println!("{} MB", bed.controller_memory()? / 1024);
    result.map(drop)
}
