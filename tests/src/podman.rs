//! Containers of a test's own, in a storage of their own, which go with their guard.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use xtask::netns::Namespace;

/// Limits that are below those of any machine, and an OCI runtime that needs no systemd.
const CONFIGURATION: &str = "[containers]\nlog_driver = \"k8s-file\"\ndefault_ulimits = [\"nofile=1024:20000\", \
    \"nproc=4096:20000\"]\n[engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\n\
    events_logger = \"file\"\n";
/// Where Debian's podman finds which system calls a container may make.
const SYSTEM_CALLS: &str = "/usr/share/containers/seccomp.json";

/// Podman, with a storage of its own.
pub struct Podman {
    directory: TempDir,
}

impl Podman {
    /// Makes the storage.
    ///
    /// # Errors
    ///
    /// There is no room.
    pub fn new() -> Result<Self> {
        let directory = TempDir::new()?;
        fs::write(directory.path().join("containers.conf"), CONFIGURATION)?;
        Ok(Self { directory })
    }

    /// A podman command.
    pub fn command(&self) -> Command {
        let path = self.directory.path();
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", path.join("containers.conf"));
        command.args(["--storage-driver", "vfs", "--root"]).arg(path.join("storage"));
        command.arg("--runroot").arg(path.join("run"));
        command
    }

    /// Runs podman, which must succeed, and returns what it printed.
    ///
    /// # Errors
    ///
    /// It fails.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command().args(arguments).output().context("podman")?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "podman {}: {error}", arguments.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs a program in a container.
    ///
    /// # Errors
    ///
    /// It can't be started.
    pub fn exec(&self, container: &str, arguments: &[&str]) -> Result<Output> {
        Ok(self.command().args(["exec", container]).args(arguments).output()?)
    }

    /// Runs a program in a container, which must succeed, and returns what it printed.
    ///
    /// # Errors
    ///
    /// It fails.
    pub fn exec_ok(&self, container: &str, arguments: &[&str]) -> Result<String> {
        let output = self.exec(container, arguments)?;
        let (said, error) = (output.stdout, String::from_utf8_lossy(&output.stderr).into_owned());
        let said = String::from_utf8(said)?;
        ensure!(output.status.success(), "{}: {said}{error}", arguments.join(" "));
        Ok(said)
    }

    /// The network of a namespace, as an argument of `podman run`.
    pub fn network(namespace: &Namespace) -> String {
        format!("ns:/run/netns/{}", namespace.name())
    }

    /// Writes a list of system calls like Debian's, with `bpf` and `perf_event_open` in it, and returns where.
    ///
    /// # Errors
    ///
    /// Debian's isn't there.
    pub fn with_bpf(&self) -> Result<PathBuf> {
        let text = fs::read_to_string(SYSTEM_CALLS).context(SYSTEM_CALLS)?;
        let mut profile: serde_json::Value = serde_json::from_str(&text)?;
        let rules = profile["syscalls"].as_array_mut().context("no rules")?;
        rules.insert(
            0,
            serde_json::json!({
                "names": ["bpf", "perf_event_open"], "action": "SCMP_ACT_ALLOW", "args": []
            }),
        );
        let path = self.directory.path().join("seccomp.json");
        fs::write(&path, profile.to_string())?;
        Ok(path)
    }

    /// Where something of the test's may be put.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if let Err(error) = self.run(&["rm", "--all", "--force", "--time", "1"]) {
            eprintln!("removing containers: {error:#}");
        }
        // Layers of the storage may be mounted.
        if let Err(error) = self.run(&["system", "reset", "--force"]) {
            eprintln!("removing the storage: {error:#}");
        }
    }
}
