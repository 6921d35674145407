//! Backends that don't die, but don't live either: each is down in time, and in words. (A certificate that has expired is in
//! `tls_checks.rs`.)

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_tests::{bed::Bed, client, wait::wait_until};
use nix::sys::{
    signal::{Signal, kill},
    socket::{setsockopt, sockopt::Linger},
};

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");
const INTERVAL: Duration = Duration::from_millis(500);
const TIMEOUT: Duration = Duration::from_secs(1);
const FALL: u32 = 3;

const HALF: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Le";

/// What ails a server.
#[derive(Clone, Copy, Debug)]
enum Illness {
    /// It answers after ten seconds.
    Slow,
    /// It says half a header, and nothing more.
    Stalls,
    /// It says half a header, and goes.
    Goes,
    /// It says half a header, and resets the connection.
    Resets,
}

/// A server with a port each, what ails it, and what is to be said of it.
const ILL: [(&str, u16, Illness, &str); 4] = [
    ("slow", 9001, Illness::Slow, "timeout after 1s waiting for the answer"),
    ("stalls", 9002, Illness::Stalls, "timeout after 1s waiting for the answer"),
    ("goes", 9003, Illness::Goes, "closed without a whole answer"),
    ("resets", 9004, Illness::Resets, "connection reset"),
];

/// Answers a connection, well or not.
fn answer(mut stream: TcpStream, illness: Option<Illness>) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let _ = stream.read(&mut [0; 1024])?;
    const WELL: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    match illness {
        None => stream.write_all(WELL)?,
        Some(Illness::Slow) => {
            // Until then, or until the other end has had enough.
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            if stream.read(&mut [0; 16]).is_err() {
                stream.write_all(WELL)?;
            }
        }
        Some(Illness::Stalls) => {
            stream.write_all(HALF)?;
            let _ = stream.read(&mut [0; 16])?;
        }
        Some(Illness::Goes) => stream.write_all(HALF)?,
        Some(Illness::Resets) => {
            stream.write_all(HALF)?;
            let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(&stream, Linger, &at_once)?;
        }
    }
    Ok(())
}

/// Starts a server that is well until `is_ill`.
fn serve(bed: &Bed, port: u16, illness: Illness, is_ill: &Arc<AtomicBool>) -> Result<()> {
    let address = SocketAddr::new(bed.backend_address("mgmt02")?.parse()?, port);
    let namespace = bed.backend_namespace("mgmt02")?;
    let listener = client::within(namespace, move || TcpListener::bind(address))?;
    let is_ill = Arc::clone(is_ill);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let illness = is_ill.load(Ordering::Relaxed).then_some(illness);
            // Who asks may go at any time.
            thread::spawn(move || answer(stream, illness));
        }
    });
    Ok(())
}

#[test]
fn who_is_neither_dead_nor_alive_is_down_in_time_and_in_words() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 2)?;
    let is_ill = Arc::new(AtomicBool::new(false));
    let mut text = format!(
        "[[service]]\nname = \"ui\"\nbind = [\"10.91.0.100:8080\"]\n[service.check]\ninterval = \"{}\"\n\
         timeout = \"{}\"\nfall = {FALL}\n[[service.backend]]\nname = \"frozen\"\naddress = \"{}:8080\"\n",
        humantime::format_duration(INTERVAL),
        humantime::format_duration(TIMEOUT),
        bed.backend_address("mgmt01")?
    );
    for (name, port, illness, _) in ILL {
        serve(&bed, port, illness, &is_ill)?;
        let address = bed.backend_address("mgmt02")?;
        text +=
            &format!("[[service.backend]]\nname = \"{name}\"\naddress = \"{address}:{port}\"\n");
    }
    bed.write_config_of(&text)?;
    bed.start_controller(&[])?;
    bed.wait_for_up(5)?;

    // From now on none of them is well.
    let processes = bed.backend_namespace("mgmt01")?.processes();
    ensure!(!processes.is_empty(), "nothing to freeze");
    for process in &processes {
        kill(*process, Signal::SIGSTOP)?;
    }
    is_ill.store(true, Ordering::Relaxed);
    let start = Instant::now();
    let frozen = ("frozen", "timeout after 1s waiting for the answer");
    let expected = ILL.map(|(name, _, _, words)| (name, words)).into_iter().chain([frozen]);
    for (name, words) in expected {
        bed.wait_for_state(name, "down")?;
        let shown = bed.shown(name)?;
        ensure!(shown["check"]["detail"] == words, "{shown}");
        bed.wait_for_event(&format!("down  backend={name}  detail=\"{words}\""))?;
    }
    // Each check takes as long as it may, or else waits for its turn; and the first one may just have been over.
    let longest = INTERVAL + (INTERVAL.max(TIMEOUT)) * FALL + Duration::from_secs(2);
    ensure!(start.elapsed() < longest, "all are down after {:?}", start.elapsed());

    is_ill.store(false, Ordering::Relaxed);
    for process in &processes {
        kill(*process, Signal::SIGCONT)?;
    }
    wait_until("all are well again", || {
        let all = bed.json(&["list", "backends", "--json"])?;
        let all = all.as_array().context("no list")?;
        Ok(all.iter().all(|backend| backend["state"] == "up"))
    })
}
