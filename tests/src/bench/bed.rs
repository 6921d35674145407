//! What requests are sent through: a client, a balancer and a backend, each in a namespace of its own, one cable from each
//! to the next.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use tempfile::TempDir;
use xtask::netns::Namespace;

use crate::{nginx, wait::wait_until};

/// Where the backend listens.
pub(super) const BACKEND: &str = "10.93.0.101:8080";
/// Where whoever balances listens.
pub(super) const VIP: &str = "10.92.0.100:8080";
/// The processor of the balancer, and that of everything else.
const BALANCERS: usize = 0;
const OTHERS: usize = 1;

/// The network, with a web server at the backend.
pub(super) struct Bed {
    pub(super) client: Namespace,
    pub(super) balancer: Namespace,
    backend: Namespace,
    directory: TempDir,
}

/// A process that ends with its guard.
pub(super) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _: std::io::Result<()> = self.0.kill();
        let _: std::io::Result<std::process::ExitStatus> = self.0.wait();
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
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("lbb{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let namespace = |role: &str| Namespace::create(&format!("{prefix}-{role}"));
        let bed = Self {
            client: namespace("client")?,
            balancer: namespace("lb")?,
            backend: namespace("backend")?,
            directory: TempDir::new()?,
        };
        cable((&bed.balancer, "lb0", "10.92.0.10/24"), (&bed.client, "client0", "10.92.0.1/24"))?;
        cable(
            (&bed.balancer, "lb1", "10.93.0.10/24"),
            (&bed.backend, "backend0", "10.93.0.101/24"),
        )?;
        for namespace in [&bed.client, &bed.backend] {
            // Answers come by another cable than that on which something was asked.
            for scope in ["all", "default"] {
                let key = format!("net.ipv4.conf.{scope}.rp_filter=0");
                namespace.run("sysctl", &["-qw", &key])?;
            }
        }
        bed.balancer.ip(&["address", "add", "10.92.0.100/32", "dev", "lb0"])?;
        // Another cable, by which replies may go straight to the client.
        cable(
            (&bed.client, "client1", "10.94.0.1/24"),
            (&bed.backend, "backend1", "10.94.0.101/24"),
        )?;
        bed.balancer.run("sysctl", &["-qw", "net.ipv4.ip_forward=1"])?;
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

    /// Where the backend is.
    pub(super) const fn backend(&self) -> &Namespace {
        &self.backend
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
        wait_until(url, || Ok(self.client.run("curl", &["-sf", "--max-time", "1", url]).is_ok()))
    }

    /// Starts a process at the balancer.
    pub(super) fn start(&self, program: &str, arguments: &[&str]) -> Result<Process> {
        let mut command = self.balancer.command(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Process(command.spawn().with_context(|| program.to_owned())?))
    }

    /// Has the kernel handle what the interfaces receive in threads, which can be pinned and counted, or as usual.
    pub(super) fn thread_interfaces(&self, threaded: bool) -> Result<()> {
        for (namespace, interface) in self.ends() {
            let number = u8::from(threaded);
            let write = format!("echo {number} > /sys/class/net/{interface}/threaded");
            // Only with a view of /sys of its own.
            xtask::netns::run("ip", &["netns", "exec", namespace.name(), "sh", "-c", &write])?;
        }
        Ok(())
    }

    /// Pins what the balancer consists of to one processor, and all else to the other.
    pub(super) fn pin(&self) -> Result<()> {
        for pid in self.balancers()? {
            set_processor(pid, BALANCERS)?;
        }
        let mut others = kernel_threads(&["napi/client0", "napi/backend0"])?;
        for pid in self.backend.processes() {
            others.push(pid);
        }
        for pid in others {
            set_processor(pid, OTHERS)?;
        }
        Ok(())
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
    const fn ends(&self) -> [(&Namespace, &'static str); 4] {
        [
            (&self.client, "client0"),
            (&self.backend, "backend0"),
            (&self.balancer, "lb0"),
            (&self.balancer, "lb1"),
        ]
    }

    /// Leaves one processor alone: all processes run on the other one. Returns that.
    pub(super) fn gather(&self) -> Result<usize> {
        for pid in self.balancer.processes().into_iter().chain(self.backend.processes()) {
            set_processor(pid, OTHERS)?;
        }
        Ok(OTHERS)
    }

    /// Lets everything run anywhere.
    pub(super) fn unpin(&self) -> Result<()> {
        let own = self.balancer.processes().into_iter().chain(self.backend.processes());
        for pid in own {
            let mut all = CpuSet::new();
            for processor in [BALANCERS, OTHERS] {
                all.set(processor)?;
            }
            sched_setaffinity(pid, &all)?;
        }
        Ok(())
    }

    /// Processor time that the balancer has taken, in nanoseconds: its processes and its interfaces' threads.
    pub(super) fn processor_time(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in self.balancers()? {
            let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
            for task in tasks.flatten() {
                let text = fs::read_to_string(task.path().join("schedstat"))?;
                let first = text.split(' ').next().context("a number")?;
                sum += first.parse::<u64>()?;
            }
        }
        Ok(sum)
    }

    fn balancers(&self) -> Result<Vec<Pid>> {
        let mut all = kernel_threads(&["napi/lb0", "napi/lb1"])?;
        ensure!(all.len() == 2, "{} threads of the balancer's interfaces", all.len());
        all.extend(self.balancer.processes());
        Ok(all)
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

/// The hardware address of an interface in a namespace.
///
/// # Errors
///
/// There is none.
pub(super) fn hardware_address(namespace: &Namespace, interface: &str) -> Result<[u8; 6]> {
    let link = namespace.ip(&["-o", "link", "show", interface])?;
    let text = link.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    hardware_address_of(text.context("a hardware address")?)
}

/// A hardware address as it is written.
pub(super) fn hardware_address_of(text: &str) -> Result<[u8; 6]> {
    let bytes: Result<Vec<u8>, _> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    bytes?.try_into().map_err(|_| anyhow::anyhow!("not a hardware address: {text}"))
}

fn set_processor(pid: Pid, processor: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(processor)?;
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let id: i32 = task.file_name().to_str().context("a number")?.parse()?;
        sched_setaffinity(Pid::from_raw(id), &only)?;
    }
    Ok(())
}

/// Threads of the kernel whose names begin so.
fn kernel_threads(beginnings: &[&str]) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if beginnings.iter().any(|beginning| name.starts_with(beginning)) {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}
