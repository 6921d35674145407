//! What clients' connections say of backends: one that doesn't take them is down before the next check finds out.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use lb_common::abi::{CheckResult, Text};

use super::controller::{Controller, Event};
use crate::{config::Observe, health::Task};

/// Time between two looks at what the data path counts.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What is known of backends that are observed.
#[derive(Debug, Default)]
pub(super) struct Observed {
    backends: BTreeMap<u32, Seen>,
    /// Asks for looks while there are some.
    ticks: Option<Task>,
}

/// What was seen of one.
#[derive(Clone, Copy, Debug)]
struct Seen {
    answered: u64,
    unanswered: u64,
    /// Connections in a row that it didn't take, and since when.
    failures: u64,
    since: Instant,
}

impl Seen {
    /// Takes in what is counted at a moment. Returns whether it is too much.
    fn take_in(&mut self, (answered, unanswered): (u64, u64), now: Instant, most: Observe) -> bool {
        let new = unanswered.saturating_sub(self.unanswered);
        let is_alive = answered != self.answered;
        (self.answered, self.unanswered) = (answered, unanswered);
        if is_alive || now.duration_since(self.since) > most.window {
            self.failures = 0;
        }
        if is_alive || new == 0 {
            return false;
        }
        if self.failures == 0 {
            self.since = now;
        }
        self.failures += new;
        self.failures >= u64::from(most.failures)
    }
}

impl Controller {
    /// Has the backends looked at whose services want it.
    pub(super) fn watch_observed(&mut self) {
        let is_wanted = self.wanted.policies.values().any(|policy| policy.observe.is_some());
        if !is_wanted {
            self.observed = Observed::default();
        } else if self.observed.ticks.is_none() {
            let events = self.events.clone();
            self.observed.ticks = Some(Task::spawn(async move {
                let mut ticks = tokio::time::interval(LOOK_INTERVAL);
                ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                loop {
                    ticks.tick().await;
                    if events.send(Event::Observe).await.is_err() {
                        return;
                    }
                }
            }));
        }
    }

    /// Looks at what the data path counted, and takes backends down that take no connections, but never the last one of a
    /// service. Returns whether there are some.
    pub(super) fn observe(&mut self) -> bool {
        let now = Instant::now();
        let mut failed = Vec::new();
        let mut backends = std::mem::take(&mut self.observed.backends);
        let mut seen = BTreeMap::new();
        for (index, state) in &self.wanted.backends {
            let policy = self.wanted.policies.get(&state.info.service);
            let Some(most) = policy.and_then(|policy| policy.observe) else { continue };
            if state.backend.takes_new_flows == 0 || self.wanted.tracks.contains_key(index) {
                continue;
            }
            // It is tried again at the next look.
            let Ok(counts) = self.loaded.maps.backend_count(*index) else { continue };
            let counted = (counts.answered, counts.unanswered);
            let new = Seen { answered: counted.0, unanswered: counted.1, failures: 0, since: now };
            let mut its = backends.remove(index).unwrap_or(new);
            if its.take_in(counted, now, most) {
                failed.push((*index, state.info.service, its.failures));
            }
            seen.insert(*index, its);
        }
        self.observed.backends = seen;
        let mut is_changed = false;
        for (index, service, failures) in failed {
            let others = self.wanted.backends.iter().filter(|(other, state)| {
                **other != index && state.info.service == service && state.info.takes_new_flows()
            });
            if others.count() == 0 {
                continue;
            }
            self.observed.backends.remove(&index);
            let Some(state) = self.wanted.backends.get_mut(&index) else { continue };
            let detail = format!("clients' connections failed, {failures} in a row");
            state.info.result = CheckResult::Down;
            state.info.detail = Text::new(&detail);
            state.info.last_change =
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let name = self.wanted.services.get(&service);
            let service = name.map_or("", |service| service.name.as_str());
            tracing::warn!(service, backend = state.info.name.as_str(), detail, "down");
            // From now on its check has to bring it up again.
            self.checkers.remove(&index);
            is_changed = true;
        }
        if is_changed {
            self.follow_up();
        }
        is_changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_count_in_a_row_and_within_the_window() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let most = Observe { failures: 3, window: Duration::from_secs(5) };
        let fresh = Seen { answered: 7, unanswered: 2, failures: 0, since: start };
        let play = |looks: &[(u64, u64, u64)]| {
            let mut seen = fresh;
            let results = looks.iter().map(|(when, answered, unanswered)| {
                seen.take_in((*answered, *unanswered), at(*when), most)
            });
            results.collect::<Vec<_>>()
        };
        assert_eq!(play(&[(1, 7, 4), (2, 7, 5)]), [false, true]);
        assert_eq!(play(&[(1, 7, 5)]), [true]);
        assert_eq!(play(&[(1, 7, 4), (2, 8, 4), (3, 8, 6)]), [false, false, false], "an answer");
        assert_eq!(play(&[(1, 8, 99)]), [false], "an answer among them");
        assert_eq!(play(&[(1, 7, 4), (9, 7, 6)]), [false, false], "too long ago");
    }
}
