//! Ctrl-C: what was set up is removed before the end.
//!
//! A terminal tells every process of the group that it has in the foreground. So that nothing ends by that which is needed for
//! the removal, the program runs itself once more, in a group of its own, and passes on what it is told.

use std::{
    env,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    process::{self, Command, ExitStatus},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Result, ensure};
use nix::{
    sys::{
        prctl::set_pdeathsig,
        signal::{SigHandler, Signal, kill, killpg},
    },
    unistd::{Pid, getppid},
};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{self, SignalKind, signal},
};

/// It may be a minute until somebody looks whether to go on.
const REMOVING: &str = "What was set up is removed as soon as can be; Ctrl-C once more leaves it.";

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Runs this program to its end once more, with the same arguments behind `mark` and the number of this process, and tells it of the
/// first SIGINT, SIGTERM or SIGHUP. After that, another SIGINT or SIGTERM ends it and what it has started at once, but for daemons.
///
/// # Errors
///
/// It can't be started.
pub fn supervise(mark: &str) -> Result<ExitStatus> {
    let mut signals = Signals::new()?;
    let mut supervised = Command::new(env::current_exe()?)
        .args([mark, &process::id().to_string()])
        .args(env::args_os().skip(1))
        .process_group(0)
        .spawn()?;
    let child = Pid::from_raw(supervised.id().cast_signed());
    thread::spawn(move || {
        signals.wait();
        // It may just have ended.
        let _: nix::Result<()> = kill(child, Signal::SIGTERM);
        // Nobody may listen any longer.
        let _: io::Result<()> = writeln!(io::stderr(), "{REMOVING}");
        signals.wait_for_demand();
        let _: nix::Result<()> = killpg(child, Signal::SIGKILL);
    });
    Ok(supervised.wait()?)
}

/// From now on, SIGINT, SIGTERM, SIGHUP and the end of who supervises, the process of that number, are [`demand_none`]'s to tell of.
///
/// # Errors
///
/// The kernel refuses, or nobody supervises any longer.
pub fn watch(supervisor: i32) -> Result<()> {
    let mut signals = Signals::new()?;
    set_pdeathsig(Signal::SIGTERM)?;
    ensure!(getppid().as_raw() == supervisor, "nobody supervises");
    // SAFETY: no handler is set. Some terminals stop who writes to them from the background.
    unsafe { nix::sys::signal::signal(Signal::SIGTTOU, SigHandler::SigIgn) }?;
    thread::spawn(move || {
        signals.wait();
        INTERRUPTED.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// Demands that nobody has interrupted.
///
/// # Errors
///
/// Somebody has.
pub fn demand_none() -> Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

/// What says that the program is to end. None of them ends it from then on.
struct Signals {
    runtime: Runtime,
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let context = runtime.enter();
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        let hangup = signal(SignalKind::hangup())?;
        drop(context);
        Ok(Self { runtime, interrupt, terminate, hangup })
    }

    fn wait(&mut self) {
        let Self { runtime, interrupt, terminate, hangup } = self;
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
    }

    /// The same without SIGHUP, which comes twice when a terminal goes.
    fn wait_for_demand(&mut self) {
        let Self { runtime, interrupt, terminate, .. } = self;
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
    }
}
