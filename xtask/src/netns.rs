//! Network namespaces that go when their guard does, and virtual Ethernet between them.

use std::{
    fs::{self, File},
    io,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A network namespace under `/run/netns`.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    /// Whether it is deleted when this is dropped.
    owned: bool,
}

impl Namespace {
    /// Makes one, with its loopback interface up and without IPv6, whose chatter nobody here
    /// wants. It is deleted, with every process in it, when the result is dropped.
    ///
    /// # Errors
    ///
    /// The name is taken, or the user may not.
    pub fn create(name: &str) -> Result<Self> {
        run("ip", &["netns", "add", name])?;
        let namespace = Self { name: name.to_owned(), owned: true };
        namespace.ip(&["link", "set", "lo", "up"])?;
        for scope in ["all", "default"] {
            let key = format!("net.ipv6.conf.{scope}.disable_ipv6=1");
            namespace.run("sysctl", &["-qw", &key])?;
        }
        Ok(namespace)
    }

    /// One that may be there already, and that stays.
    pub fn existing(name: &str) -> Self {
        Self { name: name.to_owned(), owned: false }
    }

    /// Lets it stay when this is dropped.
    #[must_use]
    pub fn keep(mut self) -> Self {
        self.owned = false;
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// A command that runs in it. Only the network differs: unlike with `ip netns exec`, `/sys` and
    /// the BPF file system stay.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = self.path();
        let enter = move || {
            let namespace = File::open(&path)?;
            setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
        };
        // SAFETY: between fork and exec only open and setns are called; the path was made before.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a program in it to its end, and returns what it printed.
    ///
    /// # Errors
    ///
    /// It can't be started, or fails; then with what it printed as an error.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(program);
        output(command.args(arguments))
            .with_context(|| format!("in {}: {program} {}", self.name, arguments.join(" ")))
    }

    /// Runs `ip` in it.
    ///
    /// # Errors
    ///
    /// As for [`Self::run`].
    pub fn ip(&self, arguments: &[&str]) -> Result<String> {
        self.run("ip", arguments)
    }

    /// The processes in it.
    pub fn processes(&self) -> Vec<Pid> {
        let Ok(own) = fs::metadata(self.path()) else { return Vec::new() };
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let in_it = |pid: &i32| {
            let other = fs::metadata(format!("/proc/{pid}/ns/net"));
            other.is_ok_and(|other| other.dev() == own.dev() && other.ino() == own.ino())
        };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(in_it).map(Pid::from_raw).collect()
    }

    /// Ends every process in it, and waits until they are gone: by SIGTERM, and after `patience`
    /// by SIGKILL; with no patience by SIGKILL alone.
    pub fn end_processes(&self, patience: Duration) {
        for (signal, patience) in
            [(Signal::SIGTERM, patience), (Signal::SIGKILL, Duration::from_secs(5))]
        {
            if patience.is_zero() {
                continue;
            }
            for pid in self.processes() {
                // It may just have ended.
                let _: nix::Result<()> = kill(pid, signal);
            }
            let start = Instant::now();
            while start.elapsed() < patience {
                if self.processes().iter().all(|pid| is_zombie(*pid)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// Deletes it, with every process in it.
    ///
    /// # Errors
    ///
    /// It isn't there, or the user may not.
    pub fn delete(&self) -> Result<()> {
        self.end_processes(Duration::from_secs(2));
        run("ip", &["netns", "delete", &self.name]).map(drop)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.owned
            && let Err(error) = self.delete()
        {
            eprintln!("deleting namespace {}: {error:#}", self.name);
        }
    }
}

/// An Ethernet switch: a bridge in a namespace of its own, so that no packet filter of the host
/// sees what passes.
#[derive(Debug)]
pub struct Switch {
    namespace: Namespace,
}

/// Settings of both ends of a cable, as arguments of `ethtool -K`.
const OFFLOADS: &[&str] = &["tx", "off", "tso", "off", "gso", "off", "gro", "on", "txvlan", "off"];

/// One end of a cable to a switch.
#[derive(Clone, Copy, Debug)]
pub struct Port<'a> {
    /// The namespace that it lies in; `None`: this process's own.
    pub namespace: Option<&'a Namespace>,
    /// The interface's name there.
    pub interface: &'a str,
    /// Name of the other end, at the switch.
    pub port: &'a str,
    /// Addresses with prefix lengths.
    pub addresses: &'a [String],
    /// Longest datagram, in bytes.
    pub mtu: u32,
}

impl Switch {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// The name is taken, or the user may not.
    pub fn create(name: &str) -> Result<Self> {
        let namespace = Namespace::create(name)?;
        namespace.ip(&["link", "add", "br0", "type", "bridge"])?;
        namespace.ip(&["link", "set", "br0", "up"])?;
        Ok(Self { namespace })
    }

    /// Its namespace.
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Lets it stay when this is dropped.
    #[must_use]
    pub fn keep(self) -> Self {
        Self { namespace: self.namespace.keep() }
    }

    /// Connects a namespace, with the offloads set so that frames which an XDP program sends
    /// arrive, and so that every checksum is computed by the sender and verified by the receiver.
    ///
    /// # Errors
    ///
    /// A name is taken, or the user may not.
    pub fn connect(&self, end: Port<'_>) -> Result<()> {
        let own = std::process::id().to_string();
        let place = end.namespace.map_or(own.as_str(), Namespace::name);
        let mtu = end.mtu.to_string();
        self.namespace.ip(&[
            "link",
            "add",
            end.port,
            "mtu",
            &mtu,
            "numtxqueues",
            "1",
            "numrxqueues",
            "1",
            "type",
            "veth",
            "peer",
            "name",
            end.interface,
            "mtu",
            &mtu,
            "numtxqueues",
            "1",
            "numrxqueues",
            "1",
            "netns",
            place,
        ])?;
        self.namespace.ip(&["link", "set", end.port, "master", "br0", "up"])?;
        // Frames that a program redirects to a veth vanish unless its peer polls (NAPI), which GRO
        // turns on.
        // What it merges, the switch must take apart again before it passes it on, and must compute
        // the checksums of: XDP knows neither merged segments nor unfinished checksums, nor VLAN tags
        // that go beside the frame.
        self.namespace.run("ethtool", &[&["-K", end.port], OFFLOADS].concat())?;

        let command = |program: &str| match end.namespace {
            Some(namespace) => namespace.command(program),
            None => Command::new(program),
        };
        for address in end.addresses {
            output(command("ip").args(["addr", "add", address, "dev", end.interface]))?;
        }
        output(command("ip").args(["link", "set", end.interface, "up"]))?;
        output(command("ethtool").args(["-K", end.interface]).args(OFFLOADS))?;
        Ok(())
    }
}

/// Runs a program to its end, and returns what it printed.
///
/// # Errors
///
/// It can't be started, or fails; then with what it printed as an error.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    output(Command::new(program).args(arguments))
        .with_context(|| format!("{program} {}", arguments.join(" ")))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {:?}", command.get_program()))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}", output.status, error.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn is_zombie(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}
