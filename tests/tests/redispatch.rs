//! A backend's process dies under 2,000 connections a second: what that costs behind lb, and behind HAProxy
//! without `redispatch`.

use std::{
    net::{SocketAddr, TcpStream},
    ops::ControlFlow,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use lb_tests::{
    bed::{Bed, SERVICE},
    client::{at_pace, exchange},
    rivals::{HAPROXY, Haproxy},
};

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");
const BACKENDS: [&str; 3] = ["mgmt01", "mgmt02", "mgmt03"];
const WORKERS: u32 = 32;
/// Connections that are opened a second.
const RATE: u32 = 2000;
/// How long before the process dies, and afterwards, which is longer than checks take to notice.
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(8);

/// How many reasons are shown.
const REASONS: usize = 5;

/// What came of the connections that were opened after the process had died, and its sockets were closed.
#[derive(Debug, Default)]
struct Came {
    opened: u32,
    /// Also those that weren't established before.
    failed: u32,
    /// Those that took longer than half a second.
    slow: u32,
    /// Why the first of them failed.
    reasons: Vec<String>,
}

fn run(bed: &Bed, to: &'static str) -> Result<Came> {
    let to: SocketAddr = to.parse()?;
    let [dead, over] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
    let came = Arc::new(Mutex::new(Came::default()));
    let shared = (Arc::clone(&dead), Arc::clone(&over), Arc::clone(&came));
    let work = move |_| {
        let (dead, over, came) = &shared;
        if over.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        let is_after = dead.load(Ordering::SeqCst);
        let start = Instant::now();
        let connected = TcpStream::connect(to);
        let is_refused = connected.is_err();
        let result = connected.map_err(Into::into).and_then(exchange);
        if is_after || is_refused {
            let mut came = came.lock().expect("nobody panics with it");
            came.opened += 1;
            if let Err(error) = &result {
                came.failed += 1;
                let time = start.elapsed();
                came.reasons.push(format!("{error}, {time:?}"));
                came.reasons.truncate(REASONS);
            }
            came.slow += u32::from(start.elapsed() > Duration::from_millis(500));
        }
        ControlFlow::Continue(())
    };
    thread::scope(|scope| -> Result<()> {
        let load =
            scope.spawn(|| at_pace(&bed.client, WORKERS, Duration::from_secs(1) / RATE, work));
        thread::sleep(BEFORE);
        bed.kill_backend("mgmt01")?;
        dead.store(true, Ordering::SeqCst);
        thread::sleep(AFTER);
        over.store(true, Ordering::Relaxed);
        load.join().map_err(|_| anyhow::anyhow!("panicked"))?
    })?;
    let mut came = came.lock().map_err(|_| anyhow::anyhow!("panicked"))?;
    Ok(std::mem::take(&mut came))
}

#[test]
fn a_process_that_dies_under_load_fails_no_new_connection_as_it_does_behind_haproxy() -> Result<()>
{
    let mut bed = Bed::without_controller(LB, "native", 3)?;
    let mut text = format!(
        "[[service]]\nname = \"ui\"\nbind = [\"{SERVICE}\"]\n[service.check]\npath = \"/client/\"\n"
    );
    for name in BACKENDS {
        let address = bed.backend_address(name)?;
        text += &format!("[[service.backend]]\nname = \"{name}\"\naddress = \"{address}:8080\"\n");
    }
    bed.write_config_of(&text)?;
    bed.start_controller(&[])?;
    bed.wait_for_up(3)?;
    let lb = run(&bed, SERVICE)?;
    println!("lb: {lb:?}, {} refusals withheld", bed.reason("refusal_withheld")?);

    bed.start_backend("mgmt01")?;
    let guard = Haproxy::start(&bed, &BACKENDS)?;
    let haproxy = run(&bed, HAPROXY)?;
    drop(guard);
    println!("HAProxy: {haproxy:?}");

    ensure!(lb.opened > 10_000 && lb.failed == 0, "{lb:?}");
    ensure!(bed.reason("refusal_withheld")? > 0, "no connection met the dead process");
    ensure!(haproxy.failed > 0, "HAProxy failed none either: the test shows nothing");
    Ok(())
}
