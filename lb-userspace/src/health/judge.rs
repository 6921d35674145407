//! From single check results to up and down: rise and fall.

/// What the checks say of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No check has ended yet.
    Unknown,
    /// It takes traffic.
    Up,
    /// It doesn't.
    Down,
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

    /// Takes in a result. The first one decides; from then on `rise` passed checks in a row bring
    /// the backend up, and `fall` failed ones take it down.
    pub fn record(&mut self, passed: bool, rise: u32, fall: u32) -> Verdict {
        let (agrees, needed) = match self.verdict {
            Verdict::Unknown => (false, 1),
            Verdict::Up => (passed, fall),
            Verdict::Down => (!passed, rise),
        };
        if agrees {
            self.against = 0;
            return self.verdict;
        }
        self.against += 1;
        if self.against >= needed {
            self.verdict = if passed { Verdict::Up } else { Verdict::Down };
            self.against = 0;
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

    /// Verdicts after each of a row of results: `+` passed, `-` failed; `U`, `D`.
    fn verdicts(mut judge: Judge, results: &str) -> String {
        results
            .chars()
            .map(|result| match judge.record(result == '+', 2, 3) {
                Verdict::Unknown => '?',
                Verdict::Up => 'U',
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
    fn it_wavers_between_the_first_contrary_result_and_the_last() {
        let mut judge = Judge::new(Verdict::Up);
        assert!(!judge.is_wavering());
        judge.record(false, 2, 3);
        assert!(judge.is_wavering());
        judge.record(true, 2, 3);
        assert!(!judge.is_wavering());
    }
}
