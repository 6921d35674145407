//! Waiting for what another process does.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

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
