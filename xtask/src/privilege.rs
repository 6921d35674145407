//! Doing as root what only root may.

use std::{env, os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result};

/// A command that runs as root: through sudo, unless we are.
pub(crate) fn command(program: &str) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["-E", program]);
    command
}

/// Whether this process is root's.
fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Has cargo run the programs that it builds as root; cargo itself stays what it is.
pub(crate) fn run_as_root(cargo: &mut Command) {
    if !is_root() {
        println!("The tests make network namespaces and load programs: they run through sudo.");
        cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", "sudo -E");
        cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", "sudo -E");
    }
}

/// Starts this program anew as root, with other arguments, unless it is root's already. Returns
/// only in that case.
pub(crate) fn require(arguments: &[String]) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let own = env::current_exe()?;
    println!("Network namespaces need root: going on through sudo.");
    let error = Command::new("sudo").arg("-E").arg(own).args(arguments).exec();
    Err(error).context("sudo")
}
