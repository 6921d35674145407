//! From single check results to up and down: rise and fall.

/// What the checks say of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No check has ended yet.
    Unknown,
    /// It takes traffic.
    Up,
    /// It goes on with what it has, and takes nothing new.
    Draining,
    /// It doesn't.
    Down,
}

/// What a single check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// It is well.
    Passed,
    /// It is well, and wants nothing new: HAProxy's conditional pass.
    Draining,
    /// It isn't.
    Failed,
}

/// Counts passed and failed checks in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judge {
    verdict: Verdict,
    /// Results in a row that speak against the verdict.
    against: u32,
}

impl Judge {
    /// Starts with a verdict, such as that of an earlier controller.
    pub const fn new(verdict: Verdict) -> Self {
        Self { verdict, against: 0 }
    }

    /// From now on, as after all but one of `fall` failed checks, unless it isn't up: what HAProxy calls `sudden-death`.
    pub fn suspect(&mut self, fall: u32) {
        if matches!(self.verdict, Verdict::Up | Verdict::Draining) {
            self.against = fall.saturating_sub(1);
        }
    }

    /// Takes in a result. The first one decides; from then on `rise` passed checks in a row bring
    /// the backend up, and `fall` failed ones take it down. One that isn't down drains, and no longer does, at once; one
    /// that is doesn't come up by draining.
    pub fn record(&mut self, mark: Mark, rise: u32, fall: u32) -> Verdict {
        let is_well = mark != Mark::Failed;
        let (agrees, needed) = match self.verdict {
            Verdict::Unknown => (false, 1),
            Verdict::Up | Verdict::Draining => (is_well, fall),
            Verdict::Down => (mark != Mark::Passed, rise),
        };
        let decides = if agrees {
            self.against = 0;
            // It drains, or no longer does.
            self.verdict != Verdict::Down
        } else {
            self.against += 1;
            self.against >= needed
        };
        if decides {
            self.against = 0;
            self.verdict = match mark {
                Mark::Passed => Verdict::Up,
                Mark::Draining => Verdict::Draining,
                Mark::Failed => Verdict::Down,
            };
        }
        self.verdict
    }

    /// The verdict in force.
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Whether results speak against the verdict, but not enough of them yet.
    pub const fn is_wavering(&self) -> bool {
        self.against > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(result: char) -> Mark {
        match result {
            '+' => Mark::Passed,
            '~' => Mark::Draining,
            _ => Mark::Failed,
        }
    }

    /// Verdicts after each of a row of results: `+` passed, `~` draining, `-` failed; `U`, `~`, `D`.
    fn verdicts(mut judge: Judge, results: &str) -> String {
        results
            .chars()
            .map(|result| match judge.record(mark(result), 2, 3) {
                Verdict::Unknown => '?',
                Verdict::Up => 'U',
                Verdict::Draining => '~',
                Verdict::Down => 'D',
            })
            .collect()
    }

    #[test]
    fn the_first_result_decides() {
        assert_eq!(verdicts(Judge::new(Verdict::Unknown), "+"), "U");
        assert_eq!(verdicts(Judge::new(Verdict::Unknown), "-"), "D");
    }

    #[test]
    fn three_failures_in_a_row_take_down_and_two_passes_bring_up() {
        let judge = Judge::new(Verdict::Up);
        assert_eq!(verdicts(judge.clone(), "--+--+---"), "UUUUUUUUD");
        assert_eq!(verdicts(judge, "---+-++-+"), "UUDDDDUUU");
    }

    #[test]
    fn one_that_is_well_drains_and_comes_back_at_once_and_one_that_is_down_stays_so() {
        assert_eq!(verdicts(Judge::new(Verdict::Unknown), "~+"), "~U");
        assert_eq!(verdicts(Judge::new(Verdict::Up), "~~+~-~--+---"), "~~U~~~~~UUUD");
        assert_eq!(verdicts(Judge::new(Verdict::Down), "~~+~++~"), "DDDDDU~");
    }

    #[test]
    fn it_wavers_between_the_first_contrary_result_and_the_last() {
        let mut judge = Judge::new(Verdict::Up);
        assert!(!judge.is_wavering());
        judge.record(Mark::Failed, 2, 3);
        assert!(judge.is_wavering());
        judge.record(Mark::Passed, 2, 3);
        assert!(!judge.is_wavering());
    }
}
