//! Waiting for what another process does.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long something may take that happens at once on a quiet machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until something holds; an error if that takes longer than [`PATIENCE`].
///
/// # Errors
///
/// It doesn't hold in time, or can't be found out.
pub fn wait_until(what: &str, holds: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_within(PATIENCE, what, holds)
}

/// The same with another patience, for what takes its time.
///
/// # Errors
///
/// It doesn't hold in time, or can't be found out.
pub fn wait_within(
    patience: Duration,
    what: &str,
    mut holds: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        ensure!(start.elapsed() < patience, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Stops a process until it gets SIGCONT, and waits until each of its threads has stopped: those on other processors go on
/// for a moment.
///
/// # Errors
///
/// It isn't there, or the user may not.
pub fn suspend(process: Pid) -> Result<()> {
    kill(process, Signal::SIGSTOP)?;
    wait_until("all threads have stopped", || {
        for task in fs::read_dir(format!("/proc/{process}/task"))? {
            let stat = fs::read_to_string(task?.path().join("stat"))?;
            if !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')) {
                return Ok(false);
            }
        }
        Ok(true)
    })
}
