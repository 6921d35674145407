//! The log: what the controller says on standard error.

use std::{
    io::{self, IsTerminal, Stderr, Write},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{LevelFilter, Targets},
    fmt::{self, MakeWriter, writer::EitherWriter},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::{
    config::{Config, LogFormat},
    journal::Journal,
};

/// So many lines wait for a reader that doesn't keep up; more are lost.
const WAITING: usize = 8192;

/// Where lines go: at first straight to standard error, and later by way of a thread. Copies share it.
#[derive(Clone, Debug, Default)]
pub struct Log {
    writer: Arc<OnceLock<NonBlocking>>,
    /// Writes of the thread that failed.
    failed: Arc<AtomicU64>,
}

impl Log {
    /// Begins to log as the configuration says, or `RUST_LOG`; what is from `info` on and of this program goes to the
    /// journal as well.
    ///
    /// # Errors
    ///
    /// Another log was begun before.
    pub fn start(config: &Config, journal: Journal) -> io::Result<Self> {
        let log = Self::default();
        let filter = EnvFilter::try_from_default_env()
            .or_else(|_| EnvFilter::try_new(&config.log))
            .unwrap_or_else(|_| "info".into());
        let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let layer = fmt::layer().with_ansi(colour).with_writer(log.clone());
        let layer = match config.log_format {
            LogFormat::Text => layer.with_target(false).boxed(),
            LogFormat::Json => layer.json().boxed(),
        };
        let own = Targets::new().with_target(env!("CARGO_CRATE_NAME"), LevelFilter::INFO);
        tracing_subscriber::registry()
            .with(layer.with_filter(filter))
            .with(journal.with_filter(own))
            .try_init()
            .map_err(io::Error::other)?;
        Ok(log)
    }

    /// Has a thread write from now on, since who reads standard error may stop doing so: nothing waits for it any longer.
    /// What isn't written yet is written when the guard is dropped, if that doesn't take longer than a second.
    pub fn leave_to_a_thread(&self) -> Option<WorkerGuard> {
        let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(WAITING);
        let (writer, guard) = builder.thread_name("log").finish(Counted(Arc::clone(&self.failed)));
        self.writer.set(writer).ok().map(|()| guard)
    }

    /// How many lines were lost, since nobody read them in time or they couldn't be written.
    pub fn lost(&self) -> u64 {
        let dropped = self.writer.get().map_or(0, |writer| writer.error_counter().dropped_lines());
        dropped as u64 + self.failed.load(Ordering::Relaxed)
    }
}

/// Standard error, where failures are counted: each is a line's.
struct Counted(Arc<AtomicU64>);

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stderr().write(bytes).inspect_err(|error| {
            // It is tried again.
            if error.kind() != io::ErrorKind::Interrupted {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = EitherWriter<NonBlocking, Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        match self.writer.get() {
            Some(writer) => EitherWriter::A(writer.clone()),
            None => EitherWriter::B(io::stderr()),
        }
    }
}
