//! Backends that came up again, and take their share of new flows step by step (`slow_start`).

use std::time::Duration;

use tokio::time::{self, Instant};

use super::controller::{Controller, Event};
use crate::health::Task;

/// Steps until a backend has its whole share.
const STEPS: u32 = 20;
/// Time between two of them, at the least.
const SHORTEST_STEP: Duration = Duration::from_millis(100);

impl Controller {
    /// A backend has come up, and with it those that track it.
    pub(super) fn warm_up(&mut self, index: u32) {
        let tracking = self.wanted.tracks.iter().filter(|(_, tracked)| **tracked == index);
        let all: Vec<u32> = tracking.map(|(index, _)| *index).chain([index]).collect();
        for index in all {
            if !self.slow_start(index).is_zero() {
                self.warming.insert(index, Instant::now());
            }
        }
        self.warm();
    }

    /// Gives those that warm up the share that they are due by now, and looks again at the next step.
    pub(super) fn warm(&mut self) {
        let mut next: Option<Duration> = None;
        let since = std::mem::take(&mut self.warming);
        self.wanted.warming.clear();
        for (index, since) in since {
            let duration = self.slow_start(index);
            let elapsed = since.elapsed();
            if elapsed >= duration {
                continue;
            }
            let step = (duration / STEPS).max(SHORTEST_STEP);
            let steps = (elapsed.as_secs_f64() / step.as_secs_f64()) as u32 + 1;
            let percent =
                (f64::from(steps) * step.as_secs_f64() * 100.0 / duration.as_secs_f64()) as u32;
            self.wanted.warming.insert(index, percent.clamp(1, 100));
            self.warming.insert(index, since);
            let rest = (step * steps).saturating_sub(elapsed);
            next = Some(next.map_or(rest, |next| next.min(rest)));
        }
        if let Some(next) = next {
            let events = self.events.clone();
            self.warming_timer = Some(Task::spawn(async move {
                time::sleep(next).await;
                // Fails only while the controller stops.
                let _: Result<(), _> = events.send(Event::Warm).await;
            }));
        }
    }

    fn slow_start(&self, index: u32) -> Duration {
        let policy = self
            .wanted
            .backends
            .get(&index)
            .and_then(|state| self.wanted.policies.get(&state.info.service));
        policy.map_or(Duration::ZERO, |policy| policy.slow_start)
    }
}
