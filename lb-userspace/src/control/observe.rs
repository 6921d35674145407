//! What clients' connections say of backends: one that doesn't take them is down before the next check finds out.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use lb_common::abi::{CheckResult, Counters, Text};

use super::controller::{Controller, Event};
use crate::{config::Observe, health::Task};

/// Time between two looks at what the data path counts.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What is known of backends that are observed.
#[derive(Debug, Default)]
pub(super) struct Observed {
    backends: BTreeMap<u32, Seen>,
    /// Those that are to be checked at once, and are down if they don't pass.
    pub(super) suspects: BTreeSet<u32>,
    /// Asks for looks while there are some.
    ticks: Option<Task>,
}

/// What was counted of a backend's answers to clients.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    answered: u64,
    refused: u64,
    unanswered: u64,
}

/// What was seen of one.
#[derive(Clone, Copy, Debug)]
struct Seen {
    counts: Counts,
    /// Connections in a row that it refused, and that it didn't take, and since when.
    refused: u64,
    failures: u64,
    since: Instant,
}

/// What is to be thought of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opinion {
    /// Nothing new.
    None,
    /// It doesn't answer. Anybody can send SYNs that aren't worth an answer, so its check has to say whether it is so.
    Suspect,
    /// It refuses connections, which nobody else can do in its name.
    Down,
}

impl Seen {
    /// Takes in what is counted at a moment.
    fn take_in(&mut self, counts: Counts, now: Instant, most: Observe) -> Opinion {
        let refused = counts.refused.saturating_sub(self.counts.refused);
        let new = refused + counts.unanswered.saturating_sub(self.counts.unanswered);
        let is_alive = counts.answered != self.counts.answered;
        self.counts = counts;
        if is_alive || now.duration_since(self.since) > most.window {
            (self.refused, self.failures) = (0, 0);
        }
        if is_alive || new == 0 {
            return Opinion::None;
        }
        if self.failures == 0 {
            self.since = now;
        }
        self.refused += refused;
        self.failures += new;
        let enough = u64::from(most.failures);
        if self.refused >= enough {
            Opinion::Down
        } else if self.failures >= enough {
            self.failures = self.refused;
            Opinion::Suspect
        } else {
            Opinion::None
        }
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
        let mut suspects = Vec::new();
        let mut backends = std::mem::take(&mut self.observed.backends);
        let mut seen = BTreeMap::new();
        for (index, state) in &self.wanted.backends {
            let policy = self.wanted.policies.get(&state.info.service);
            let Some(most) = policy.and_then(|policy| policy.observe) else { continue };
            if state.backend.takes_new_flows == 0 || self.wanted.tracks.contains_key(index) {
                continue;
            }
            // It is tried again at the next look.
            let Ok(counters) = self.loaded.maps.backend_count(*index) else { continue };
            let Counters { answered, refused, unanswered, .. } = counters;
            let counts = Counts { answered, refused, unanswered };
            let new = Seen { counts, refused: 0, failures: 0, since: now };
            let mut its = backends.remove(index).unwrap_or(new);
            match its.take_in(counts, now, most) {
                Opinion::None => {}
                Opinion::Suspect => suspects.push(*index),
                Opinion::Down => failed.push((*index, state.info.service, its.refused)),
            }
            seen.insert(*index, its);
        }
        self.observed.backends = seen;
        let mut is_changed = false;
        suspects.retain(|index| self.are_others(*index));
        for (index, service, refusals) in failed {
            if !self.are_others(index) {
                continue;
            }
            self.observed.backends.remove(&index);
            let Some(state) = self.wanted.backends.get_mut(&index) else { continue };
            let detail = format!("it refused connections of clients, {refusals} in a row");
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
        for index in &suspects {
            tracing::debug!(
                backend = self.wanted.name_of(*index),
                "clients get no answers: checked at once"
            );
            self.checkers.remove(index);
        }
        let are_suspected = !suspects.is_empty();
        self.observed.suspects.extend(suspects);
        if is_changed || are_suspected {
            self.follow_up();
        }
        is_changed
    }
}

impl Controller {
    /// Whether other backends of its service take new flows.
    fn are_others(&self, index: u32) -> bool {
        let Some(own) = self.wanted.backends.get(&index) else { return false };
        self.wanted.backends.iter().any(|(other, state)| {
            *other != index
                && state.info.service == own.info.service
                && state.info.takes_new_flows()
        })
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
        let counts =
            |[answered, refused, unanswered]: [u64; 3]| Counts { answered, refused, unanswered };
        let fresh = Seen { counts: counts([7, 2, 0]), refused: 0, failures: 0, since: start };
        let play = |looks: &[(u64, [u64; 3])]| {
            let mut seen = fresh;
            let results =
                looks.iter().map(|(when, now)| seen.take_in(counts(*now), at(*when), most));
            results.collect::<Vec<_>>()
        };
        let (none, suspect, down) = (Opinion::None, Opinion::Suspect, Opinion::Down);
        assert_eq!(play(&[(1, [7, 4, 0]), (2, [7, 5, 0])]), [none, down]);
        assert_eq!(play(&[(1, [7, 5, 0])]), [down]);
        assert_eq!(play(&[(1, [7, 4, 0]), (2, [8, 4, 0]), (3, [8, 6, 0])]), [none; 3], "an answer");
        assert_eq!(play(&[(1, [8, 99, 99])]), [none], "an answer among them");
        assert_eq!(play(&[(1, [7, 4, 0]), (9, [7, 6, 0])]), [none; 2], "too long ago");
        assert_eq!(play(&[(1, [7, 2, 99])]), [suspect], "silence is no proof");
        assert_eq!(play(&[(1, [7, 4, 1]), (2, [7, 5, 1])]), [suspect, down], "but a refusal is");
        assert_eq!(play(&[(1, [7, 2, 4]), (2, [7, 2, 5])]), [suspect, none], "from then on anew");
    }
}
