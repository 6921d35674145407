//! The lab in the foreground.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    path::Path,
    time::Duration,
};

use anyhow::{Result, anyhow};
use ipnet::Ipv4Net;
use tokio::{
    signal::unix::{SignalKind, signal},
    time,
};

use super::{
    place::{file, lb},
    subnet::{address, check_size},
    topology,
};

/// Time between two looks at the log.
const LOG_INTERVAL: Duration = Duration::from_millis(200);

/// Starts the lab anew, shows the controller's log, and removes the lab at Ctrl-C.
pub(crate) fn serve(subnet: Ipv4Net) -> Result<()> {
    check_size(subnet)?;
    let _lock = lock()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        // From here on no signal ends this process before the lab is removed.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        topology::down()?;
        topology::up(subnet)?;
        print_what_to_try(&subnet);
        println!("\nThe controller's log follows; Ctrl-C stops the lab and removes every trace.\n");
        let log = file("lb.log");
        tokio::select! {
            result = follow(&log) => result,
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
            _ = hangup.recv() => Ok(()),
        }
    });
    println!("\nRemoving the lab.");
    topology::down()?;
    result
}

/// Only one process serves the lab: an abstract socket goes with its process, and leaves no file.
fn lock() -> Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name("lb-lab")?)
        .map_err(|_| anyhow!("the lab is served by another `cargo xtask run`; stop that one first"))
}

/// Shows what is written to a file.
async fn follow(path: &Path) -> Result<()> {
    let mut log = File::open(path)?;
    let mut text = Vec::new();
    let mut interval = time::interval(LOG_INTERVAL);
    loop {
        interval.tick().await;
        text.clear();
        log.read_to_end(&mut text)?;
        let mut output = std::io::stdout().lock();
        output.write_all(&text)?;
        output.flush()?;
    }
}

/// Tells what can be done with the lab.
pub(super) fn print_what_to_try(subnet: &Ipv4Net) {
    let lb = lb();
    let lb = std::env::current_dir()
        .ok()
        .and_then(|here| lb.strip_prefix(here).ok().map(Path::to_path_buf))
        .unwrap_or(lb);
    let lb = lb.display();
    let config = if fs::exists("/etc/lb/lb.toml").unwrap_or(false) {
        format!(" -c {}", file("lb.toml").display())
    } else {
        String::new()
    };
    let balancer = address(*subnet, 10);
    println!(
        "The lab is up: lb at {balancer}, three backends at {}-103, and this host is the client.\n
Try, from another shell:",
        address(*subnet, 101),
    );
    let lb = |command: &str| format!("{lb} {command}{config}");
    for (command, what) in [
        (format!("curl http://{}:8080/client/", address(*subnet, 100)), "a backend says its name"),
        (lb("status"), "what is there"),
        (lb("list backends"), "and how much each of them does"),
        (lb("drain cloudstack-ui/mgmt01"), "no new connections; `ready` undoes it"),
        ("cargo xtask lab kill mgmt02".to_owned(), "the checks take it out; `lab start mgmt02`"),
        ("cargo xtask lab kill lb".to_owned(), "connections go on; `lab start lb` takes over"),
        (lb("list reasons"), "what became of every packet"),
        (format!("http://{balancer}:8404/stats"), "the same, in a browser"),
    ] {
        println!("    {command:<46}{what}");
    }
}
