//! Backends that neither die nor live, or that are checked elsewhere: each is down in time, and in words. (A certificate that has
//! expired is in `tls_checks.rs`.)

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
use lb_tests::{
    bed::Bed,
    client,
    wait::{suspend, wait_until},
};
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
    /// It says something else, and nothing more.
    Mutters,
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
        Some(Illness::Mutters) => {
            stream.write_all(b"b3\n")?;
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
        suspend(*process)?;
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

#[test]
fn what_came_instead_of_what_is_wanted_is_told() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 2)?;
    serve(&bed, 9005, Illness::Mutters, &Arc::new(AtomicBool::new(true)))?;
    bed.write_config_of(
        "[[service]]\nname = \"line\"\nbind = [\"10.91.0.100:9005\"]\n\
         [service.check]\ntype = \"tcp\"\nsend = \"hello\"\nexpect = \"200 OK\"\ntimeout = \"500ms\"\n\
         [[service.backend]]\nname = \"mutters\"\naddress = \"10.91.0.102:9005\"\n",
    )?;
    bed.start_controller(&[])?;
    bed.wait_for_state("mutters", "down")?;
    let shown = bed.shown("mutters")?;
    let detail = shown["check"]["detail"].as_str().unwrap_or_default();
    ensure!(detail.starts_with("answered \"b3\\n\", wanted"), "{shown}");
    Ok(())
}

#[test]
fn checks_go_where_each_backend_says() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 2)?;
    let (first, second) = (bed.backend_address("mgmt01")?, bed.backend_address("mgmt02")?);
    // Nobody is where their connections would go.
    bed.write_config_of(&format!(
        "[[service]]\nname = \"ui\"\nbind = [\"10.91.0.100:8080\"]\n[service.check]\ninterval = \"200ms\"\n\
         [[service.backend]]\nname = \"port\"\naddress = \"{first}:9999\"\ncheck_port = 8080\n\
         [[service.backend]]\nname = \"address\"\naddress = \"10.91.0.77:8080\"\ncheck_address = \"{second}\"\n\
         [[service.backend]]\nname = \"both\"\naddress = \"10.91.0.77:9999\"\ncheck_address = \"{second}\"\n\
         check_port = 8080\n\
         [[service.backend]]\nname = \"neither\"\naddress = \"{second}:9999\"\n"
    ))?;
    bed.start_controller(&[])?;
    for name in ["port", "address", "both"] {
        bed.wait_for_state(name, "up")?;
    }
    bed.wait_for_state("neither", "down")?;
    bed.kill_backend("mgmt02")?;
    for name in ["address", "both"] {
        bed.wait_for_state(name, "down")?;
        let shown = bed.shown(name)?;
        ensure!(shown["check"]["detail"] == "connection refused", "{shown}");
    }
    ensure!(bed.shown("port")?["state"] == "up");
    Ok(())
}

#[test]
fn what_an_agent_says_of_its_backend_is_shown_with_its_reason() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 1)?;
    let address = bed.backend_address("mgmt01")?.to_owned();
    let place: SocketAddr = format!("{address}:9000").parse()?;
    let listener =
        client::within(bed.backend_namespace("mgmt01")?, move || TcpListener::bind(place))?;
    let is_ready = Arc::new(AtomicBool::new(false));
    let ready = Arc::clone(&is_ready);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let is_ready = ready.load(Ordering::Relaxed);
            let line = if is_ready { "ready up\n" } else { "maint # \u{1b}[31mupgrade\n" };
            // Who asks may go at any time.
            let _: std::io::Result<()> = stream.write_all(line.as_bytes());
        }
    });
    bed.write_config_of(&format!(
        "[[service]]\nname = \"ui\"\nbind = [\"10.91.0.100:8080\"]\n\
         [service.check]\ninterval = \"200ms\"\nagent_port = 9000\nagent_interval = \"200ms\"\n\
         [[service.backend]]\nname = \"app\"\naddress = \"{address}:8080\"\n"
    ))?;
    bed.start_controller(&[])?;
    bed.wait_for_state("app", "maint")?;
    wait_until("both are shown", || {
        let shown = bed.shown("app")?["check"]["detail"].as_str().unwrap_or_default().to_owned();
        Ok(shown == "status 200; maint as its agent says: [31mupgrade")
    })?;
    let said = bed.lb_ok(&["ready", "ui/app"])?;
    ensure!(said.trim() == "ui/app: maint, as its agent says, weight 1", "{said}");
    is_ready.store(true, Ordering::Relaxed);
    bed.wait_for_state("app", "up")?;
    wait_until("that is over", || Ok(bed.shown("app")?["check"]["detail"] == "status 200"))
}
