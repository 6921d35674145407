//! Ctrl-C: what was set up is removed before the end.

use std::{
    process,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Result, ensure};
use tokio::{
    runtime::Builder,
    signal::unix::{Signal, SignalKind, signal},
};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on, SIGINT, SIGTERM and SIGHUP are [`demand_none`]'s to tell of. The second one ends the process at once.
///
/// # Errors
///
/// The kernel refuses.
pub fn watch() -> Result<()> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let context = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    drop(context);
    thread::spawn(move || {
        runtime.block_on(async {
            any(&mut interrupt, &mut terminate, &mut hangup).await;
            INTERRUPTED.store(true, Ordering::Relaxed);
            eprintln!("Interrupted: what was set up is removed. Once more ends it at once.");
            any(&mut interrupt, &mut terminate, &mut hangup).await;
            process::exit(1);
        });
    });
    Ok(())
}

async fn any(interrupt: &mut Signal, terminate: &mut Signal, hangup: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}

/// Demands that nobody has interrupted.
///
/// # Errors
///
/// Somebody has.
pub(super) fn demand_none() -> Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}
