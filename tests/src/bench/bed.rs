//! What requests are sent through: a client, a balancer and a backend, each in a namespace of its own, one cable from each
//! to the next.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    rc::Rc,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use xtask::netns::Namespace;

use super::{
    guest::{Cable, Guest},
    processors::OTHERS,
};
use crate::{nginx, wait::wait_within};

/// Where the backend listens.
pub(super) const BACKEND: &str = "10.93.0.101:8080";
/// Where whoever balances listens.
pub(super) const VIP: &str = "10.92.0.100:8080";
/// How long a balancer may take to start: in a guest whose instructions are executed in software, the kernel takes its time to
/// verify programs.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// No end of a connection waits (RFC 9293, section 3.6.1). Else, where 65,000 do, each connection from a port that one of them had takes
/// 20 ms more, through whatever system, and what is measured is how many there were before.
const NO_TIME_WAIT: &str = "net.ipv4.tcp_max_tw_buckets=0";

/// The network, with a web server at the backend.
pub(super) struct Bed {
    pub(super) client: Namespace,
    pub(super) balancer: Namespace,
    /// The machine that the balancer is, unless it is just that namespace.
    pub(super) guest: Option<Rc<Guest>>,
    pub(super) backend: Namespace,
    directory: TempDir,
}

/// A process of the balancer's, which ends with its guard.
pub(super) enum Process {
    Here(Child),
    InGuest(Rc<Guest>, String),
}

impl Drop for Process {
    fn drop(&mut self) {
        match self {
            Self::Here(process) => {
                // It may have ended already.
                let _: std::io::Result<()> = process.kill();
                let _: std::io::Result<std::process::ExitStatus> = process.wait();
            }
            // Neither can the guest's end be mended here.
            Self::InGuest(guest, process) => drop(guest.kill(process)),
        }
    }
}

/// Settings of both ends of a cable, as arguments of `ethtool -K`: XDP knows no merged segments and no checksums that are
/// still to be computed.
const OFFLOADS: &[&str] = &["tx", "off", "tso", "off", "gso", "off", "gro", "on"];

impl Bed {
    /// Makes it.
    ///
    /// # Errors
    ///
    /// The user may not.
    pub(super) fn new() -> Result<Self> {
        let bed = Self::without_cables()?;
        let (balancer, client, backend) = (&bed.balancer, &bed.client, &bed.backend);
        cable((balancer, "lb0", "10.92.0.10/24"), (client, "client0", "10.92.0.1/24"))?;
        cable((balancer, "lb1", "10.93.0.10/24"), (backend, "backend0", "10.93.0.101/24"))?;
        bed.finish()
    }

    /// Makes one whose balancer is a machine of its own, with these programs beside the system's.
    ///
    /// # Errors
    ///
    /// The user may not, or the machine doesn't start.
    pub(super) fn with_guest(programs: &[&str]) -> Result<Self> {
        let mut bed = Self::without_cables()?;
        let cables = [
            Cable { namespace: &bed.client, interface: "client0", address: "10.92.0.1/24" },
            Cable { namespace: &bed.backend, interface: "backend0", address: "10.93.0.101/24" },
        ];
        let guest = Guest::start(&bed.balancer, bed.directory.path(), programs, &cables)?;
        bed.guest = Some(Rc::new(guest));
        for (interface, address) in [("lb0", "10.92.0.10/24"), ("lb1", "10.93.0.10/24")] {
            bed.at_balancer("ip", &["address", "add", address, "dev", interface])?;
        }
        bed.finish()
    }

    fn without_cables() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("lbb{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let namespace = |role: &str| Namespace::create(&format!("{prefix}-{role}"));
        Ok(Self {
            guest: None,
            client: namespace("client")?,
            balancer: namespace("lb")?,
            backend: namespace("backend")?,
            directory: TempDir::new()?,
        })
    }

    /// All that doesn't depend on what the balancer is.
    fn finish(self) -> Result<Self> {
        let bed = self;
        for namespace in [&bed.client, &bed.backend] {
            // Answers come by another cable than that on which something was asked.
            for scope in ["all", "default"] {
                let key = format!("net.ipv4.conf.{scope}.rp_filter=0");
                namespace.run("sysctl", &["-qw", &key])?;
            }
            namespace.run("sysctl", &["-qw", NO_TIME_WAIT])?;
        }
        bed.at_balancer("sysctl", &["-qw", NO_TIME_WAIT])?;
        bed.at_balancer("ip", &["address", "add", "10.92.0.100/32", "dev", "lb0"])?;
        // Another cable, by which replies may go straight to the client.
        cable(
            (&bed.client, "client1", "10.94.0.1/24"),
            (&bed.backend, "backend1", "10.94.0.101/24"),
        )?;
        bed.at_balancer("sysctl", &["-qw", "net.ipv4.ip_forward=1"])?;
        bed.client.ip(&["route", "add", "default", "via", "10.92.0.10"])?;
        bed.backend.ip(&["route", "add", "default", "via", "10.93.0.10"])?;
        let home = bed.file("backend");
        fs::create_dir_all(home.join("tmp"))?;
        fs::write(bed.file("big"), vec![b'x'; 1 << 20])?;
        let config = home.join("nginx.conf");
        fs::write(&config, nginx::configuration(&home, "backend", &["0.0.0.0:8080"]))?;
        bed.backend.run("nginx", &["-c", config.to_str().context("UTF-8")?])?;
        bed.wait_for("http://10.93.0.101:8080/client/")?;
        Ok(bed)
    }

    /// Runs a program at the balancer to its end, and returns what it printed.
    ///
    /// # Errors
    ///
    /// It can't be started, or fails; then with what it printed as an error.
    pub(super) fn at_balancer(&self, program: &str, arguments: &[&str]) -> Result<String> {
        match &self.guest {
            Some(guest) => guest.run(program, arguments),
            None => self.balancer.run(program, arguments),
        }
    }

    /// Writes a file of the balancer's.
    ///
    /// # Errors
    ///
    /// It can't.
    pub(super) fn write_at_balancer(&self, file: &Path, text: &str) -> Result<()> {
        match &self.guest {
            Some(guest) => guest.write(file, text),
            None => Ok(fs::write(file, text)?),
        }
    }

    /// What the balancer has said lately, if it is a machine of its own.
    pub(super) fn last_words(&self) -> String {
        self.guest.as_ref().map(|guest| guest.last_words()).unwrap_or_default()
    }

    /// Ends what the balancer's processes have left behind.
    pub(super) fn end_processes(&self) {
        // In the guest, each is the guard's; here there is the guest itself.
        if self.guest.is_none() {
            self.balancer.end_processes(Duration::from_secs(2));
        }
    }

    /// Gives the backend the service's address and the short way to the client, or takes them away.
    pub(super) fn return_directly(&self, directly: bool) -> Result<()> {
        let action = if directly { "add" } else { "del" };
        self.backend.ip(&["address", action, "10.92.0.100/32", "dev", "lo"])?;
        self.backend.ip(&["route", action, "10.92.0.1/32", "via", "10.94.0.1"]).map(drop)
    }

    /// A file of its own.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Waits until the client gets an answer.
    pub(super) fn wait_for(&self, url: &str) -> Result<()> {
        wait_within(PATIENCE, url, || {
            Ok(self.client.run("curl", &["-sf", "--max-time", "1", url]).is_ok())
        })
    }

    /// Starts a process at the balancer.
    pub(super) fn start(&self, program: &str, arguments: &[&str]) -> Result<Process> {
        if let Some(guest) = &self.guest {
            let process = guest.spawn(program, arguments)?;
            return Ok(Process::InGuest(Rc::clone(guest), process));
        }
        let mut command = self.balancer.command(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Process::Here(command.spawn().with_context(|| program.to_owned())?))
    }

    /// Gives each interface on the way to the backend so many queues, while nobody has a program there.
    pub(super) fn set_queues(&self, queues: usize) -> Result<()> {
        let queues = queues.to_string();
        for (namespace, interface) in self.ends() {
            namespace.run("ethtool", &["-L", interface, "rx", &queues, "tx", &queues])?;
        }
        Ok(())
    }

    /// Both ends of both cables on the way to the backend.
    pub(super) const fn ends(&self) -> [(&Namespace, &'static str); 4] {
        [
            (&self.client, "client0"),
            (&self.backend, "backend0"),
            (&self.balancer, "lb0"),
            (&self.balancer, "lb1"),
        ]
    }

    /// Runs wrk at the client for some seconds, pinned or not, and returns what it found.
    pub(super) fn load(&self, url: &str, arguments: &[&str], pinned: bool) -> Result<Load> {
        const SCRIPT: &str = "done = function(summary, latency, requests)\n\
            local e = summary.errors\n\
            io.write(string.format('found %d %d %d %d %d %d %d\\n', summary.requests, summary.duration, summary.bytes, \
            e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(99), \
            latency:percentile(99.9)))\nend\n";
        let script = self.file("wrk.lua");
        fs::write(&script, SCRIPT)?;
        let script = script.to_str().context("UTF-8")?;
        let mut all = vec!["-t1", "-s", script];
        all.extend(arguments);
        all.push(url);
        let text = if pinned {
            let processor = OTHERS.to_string();
            self.client.run("taskset", &[&["-c", &processor, "wrk"], &all[..]].concat())?
        } else {
            self.client.run("wrk", &all)?
        };
        let line = text.lines().find_map(|line| line.strip_prefix("found "));
        let numbers: Result<Vec<u64>, _> =
            line.with_context(|| text.clone())?.split(' ').map(str::parse).collect();
        let [requests, microseconds, bytes, errors, p50, p99, p999] =
            numbers?[..].try_into().context("seven numbers")?;
        ensure!(requests > 0, "no request was answered: {text}");
        Ok(Load {
            requests,
            seconds: microseconds as f64 / 1e6,
            bytes,
            errors,
            latency: [p50, p99, p999],
        })
    }

    /// Where it keeps its files.
    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }
}

/// Connects two namespaces: each end has its interface's name and its address.
fn cable(one: (&Namespace, &str, &str), other: (&Namespace, &str, &str)) -> Result<()> {
    let (namespace, interface, _) = one;
    let (peer, peer_interface, _) = other;
    let place = peer.name();
    let link = ["type", "veth", "peer", "name", peer_interface, "netns", place];
    namespace.ip(&[&["link", "add", interface], &link[..]].concat())?;
    for (namespace, interface, address) in [one, other] {
        namespace.ip(&["address", "add", address, "dev", interface])?;
        namespace.ip(&["link", "set", interface, "up"])?;
        namespace.run("ethtool", &[&["-K", interface], OFFLOADS].concat())?;
    }
    Ok(())
}

/// What wrk found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) requests: u64,
    pub(super) seconds: f64,
    pub(super) bytes: u64,
    pub(super) errors: u64,
    /// Of requests, in microseconds: half of them, 99% and 99.9% took no longer.
    pub(super) latency: [u64; 3],
}

impl Load {
    /// Demands that every request was answered.
    pub(super) fn demand_no_errors(&self) -> Result<()> {
        ensure!(self.errors == 0, "{} requests failed, {} didn't", self.errors, self.requests);
        Ok(())
    }
}

/// The hardware address of the interface that `ip -o link show` has shown.
///
/// # Errors
///
/// There is none.
pub(super) fn hardware_address_in(link: &str) -> Result<&str> {
    let address = link.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    address.context("a hardware address")
}

/// A hardware address as it is written.
pub(super) fn hardware_address_of(text: &str) -> Result<[u8; 6]> {
    let bytes: Result<Vec<u8>, _> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    bytes?.try_into().map_err(|_| anyhow::anyhow!("not a hardware address: {text}"))
}
