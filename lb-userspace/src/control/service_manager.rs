//! What systemd is told, where it runs us with `Type=notify` (see `sd_notify(3)`).

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// Tells it, if it wants to know.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "telling the service manager");
    }
}

/// Tells it that the loop turns.
#[derive(Debug)]
pub(super) struct Watchdog {
    /// At least so often; `None`: it doesn't want to know.
    interval: Option<Duration>,
    told: Instant,
}

impl Watchdog {
    /// As the environment says.
    pub(super) fn new() -> Self {
        let interval = sd_notify::watchdog_enabled().map(|timeout| timeout / 3);
        Self { interval, told: Instant::now() }
    }

    /// How often the loop has to turn for it.
    pub(super) const fn interval(&self) -> Option<Duration> {
        self.interval
    }

    /// The loop has turned.
    pub(super) fn turn(&mut self) {
        if self.interval.is_some_and(|interval| self.told.elapsed() >= interval / 2) {
            tell(&[NotifyState::Watchdog]);
            self.told = Instant::now();
        }
    }
}
