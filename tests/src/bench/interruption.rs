//! Ctrl-C: what was set up is removed before the end.
//!
//! A terminal tells every process of the group that it has in the foreground. So that nothing ends by that which is needed for
//! the removal, the program runs itself once more, in a group of its own, and passes on what it is told.

use std::{
    env,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    process::{Command, ExitStatus},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Result, ensure};
use nix::{
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, kill, killpg},
    },
    unistd::Pid,
};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{self, SignalKind, signal},
};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Runs this program to its end once more, with the same arguments and one more, and tells it of the first SIGINT, SIGTERM or
/// SIGHUP. After that, another SIGINT ends it and all that it has started at once.
///
/// # Errors
///
/// It can't be started.
pub fn supervise(mark: &str) -> Result<ExitStatus> {
    let mut signals = Signals::new()?;
    let mut supervised = Command::new(env::current_exe()?)
        .args(env::args_os().skip(1))
        .arg(mark)
        .process_group(0)
        .spawn()?;
    let process = Pid::from_raw(supervised.id().cast_signed());
    thread::spawn(move || {
        signals.wait();
        // It may just have ended.
        let _: nix::Result<()> = kill(process, Signal::SIGTERM);
        // Nobody may listen any longer.
        let _: io::Result<()> =
            writeln!(io::stderr(), "What was set up is removed; Ctrl-C once more leaves it.");
        signals.wait_for_interrupt();
        let _: nix::Result<()> = killpg(process, Signal::SIGKILL);
    });
    Ok(supervised.wait()?)
}

/// From now on, SIGINT, SIGTERM, SIGHUP and the end of who supervises are [`demand_none`]'s to tell of.
///
/// # Errors
///
/// The kernel refuses.
pub fn watch() -> Result<()> {
    let mut signals = Signals::new()?;
    set_pdeathsig(Signal::SIGTERM)?;
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

    fn wait_for_interrupt(&mut self) {
        self.runtime.block_on(self.interrupt.recv());
    }
}
