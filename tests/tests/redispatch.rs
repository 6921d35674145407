//! A backend's process dies under 2,000 connections a second: what that costs behind lb, and behind HAProxy
//! without `redispatch`.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    process::Command,
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
    client::{exchange, within},
    wait::wait_until,
};

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");
/// Where HAProxy listens, beside the service.
const HAPROXY: &str = "10.91.0.200:8080";
const WORKERS: u32 = 32;
/// Connections that each worker opens a second.
const RATE: u32 = 64;
/// How long before the process dies, and afterwards, which is longer than checks take to notice.
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(8);

/// What came of the connections that were opened after the process had died.
#[derive(Debug, Default)]
struct Came {
    opened: u32,
    failed: u32,
    /// Those that took longer than half a second.
    slow: u32,
}

fn run(bed: &Bed, to: &'static str) -> Result<Came> {
    let to: SocketAddr = to.parse()?;
    let [dead, over] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
    let came = Arc::new(Mutex::new(Came::default()));
    let shared = (Arc::clone(&dead), Arc::clone(&over), Arc::clone(&came));
    let work = move || {
        let workers: Vec<_> = (0..WORKERS)
            .map(|number| {
                let (dead, over, came) = shared.clone();
                thread::spawn(move || {
                    let start = Instant::now() + Duration::from_secs(1) * number / (WORKERS * RATE);
                    for turn in 0u32.. {
                        let due = start + Duration::from_secs(1) * turn / RATE;
                        thread::sleep(due.saturating_duration_since(Instant::now()));
                        if over.load(Ordering::Relaxed) {
                            return;
                        }
                        let is_after = dead.load(Ordering::SeqCst);
                        let start = Instant::now();
                        let result = TcpStream::connect(to).map_err(Into::into).and_then(exchange);
                        if is_after && let Ok(mut came) = came.lock() {
                            came.opened += 1;
                            came.failed += u32::from(result.is_err());
                            came.slow += u32::from(start.elapsed() > Duration::from_millis(500));
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().map_err(|_| std::io::Error::other("a worker panicked"))?;
        }
        Ok(())
    };
    thread::scope(|scope| -> Result<()> {
        let load = scope.spawn(|| within(&bed.client, work));
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
    let mut haproxy = String::from(
        "defaults\n mode tcp\n timeout connect 2s\n timeout client 20s\n timeout server 20s\n\
         listen ui\n bind 10.91.0.200:8080\n option httpchk GET /client/\n",
    );
    for number in 1..=3 {
        let (name, address) = (format!("mgmt0{number}"), format!("10.91.0.10{number}:8080"));
        text += &format!("[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"\n");
        haproxy += &format!(" server {name} {address} check\n");
    }
    bed.write_config_of(&text)?;
    bed.start_controller(&[])?;
    bed.wait_for_up(3)?;
    let lb = run(&bed, SERVICE)?;
    println!("lb: {lb:?}, {} refusals withheld", bed.reason("refusal_withheld")?);

    bed.start_backend("mgmt01")?;
    bed.balancer.ip(&["address", "add", "10.91.0.200/32", "dev", "eth0"])?;
    let file = bed.config().with_extension("cfg");
    fs::write(&file, haproxy)?;
    let mut server: Command = bed.balancer.command("haproxy");
    let mut server = server.arg("-db").arg("-f").arg(&file).spawn().context("haproxy")?;
    let answers = || {
        let url = format!("http://{HAPROXY}/client/");
        Ok(bed.client.run("curl", &["-sf", "--max-time", "1", &url]).is_ok())
    };
    let result = wait_until("HAProxy answers", answers).and_then(|()| run(&bed, HAPROXY));
    server.kill()?;
    server.wait()?;
    let haproxy = result?;
    println!("HAProxy: {haproxy:?}");

    ensure!(lb.opened > 10_000 && lb.failed == 0, "{lb:?}");
    ensure!(bed.reason("refusal_withheld")? > 0, "no connection met the dead process");
    ensure!(haproxy.failed > 0, "HAProxy failed none either: the test shows nothing");
    Ok(())
}
