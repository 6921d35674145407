//! Whether backends take connections, as the packets themselves show.

use bytemuck::{Pod, Zeroable};

use super::{Moment, Stamp};

/// When a backend last refused a connection and hasn't taken one since, and when it last answered one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Refusal {
    /// A [`Stamp`], in whose lowest bits the way stands; 0: it has taken a connection since.
    at: u32,
    /// A [`Stamp`], not always the newest: see [`Self::answering`].
    answered: u32,
}

/// How a backend refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RefusalKind {
    /// It answers nobody.
    Mute = 1,
    /// It says so: by a reset, or by ICMP.
    Said = 3,
}

/// Bits of [`Refusal::at`] that hold the kind.
const KIND: u32 = 3;
/// How old the stamp of an answer becomes, in units of a [`Stamp`], before another takes its place: some 30 ms,
/// so that a busy backend's entry isn't written by every connection.
const ANSWER_AGE: u32 = 64;

impl Refusal {
    /// Has refused at `now`.
    #[inline(always)]
    #[must_use]
    pub const fn refusing(self, now: Moment, kind: RefusalKind) -> Self {
        Self { at: now.stamp().number() & !KIND | kind as u32, answered: self.answered }
    }

    /// Has answered at `now`; `None`: that makes no difference worth writing.
    #[inline(always)]
    pub const fn answering(self, now: Moment) -> Option<Self> {
        let answered = now.stamp().number();
        if self.at == 0 && age(now, self.answered) <= ANSWER_AGE {
            return None;
        }
        Some(Self { at: 0, answered })
    }

    /// Whether it has refused within so many units of a [`Stamp`] before `now`, and taken none since.
    #[inline(always)]
    pub const fn is_within(self, now: Moment, units: u32) -> bool {
        self.at != 0 && age(now, self.at) <= units
    }

    /// The same, of refusals that it said.
    #[inline(always)]
    pub const fn was_said_within(self, now: Moment, units: u32) -> bool {
        self.at & KIND == RefusalKind::Said as u32 && self.is_within(now, units)
    }

    /// Whether it has answered anybody since then, as far as is known.
    #[inline(always)]
    pub const fn has_answered_since(self, then: Stamp) -> bool {
        let later = self.answered.wrapping_sub(then.number());
        self.answered != 0 && later < u32::MAX / 2
    }
}

/// Units between `now` and the stamp of that number, whichever is later: another CPU's clock may be ahead. What
/// is half the clock's round ago is very old, and not to come.
#[inline(always)]
const fn age(now: Moment, stamp: u32) -> u32 {
    (now.stamp().number().wrapping_sub(stamp) as i32).unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(units: u64) -> Moment {
        Moment::from_nanoseconds(units * Stamp::NANOSECONDS)
    }

    #[test]
    fn a_refusal_is_over_after_a_while_and_stays_so_whatever_the_clock_says() {
        let start = 1 << 20;
        let refusal = Refusal::default().refusing(at(start), RefusalKind::Mute);
        assert!(refusal.is_within(at(start), 100) && refusal.is_within(at(start - 2), 100));
        assert!(refusal.is_within(at(start + 96), 100) && !refusal.is_within(at(start + 104), 100));
        for days in 1..26 {
            let later = at(start + days * 24 * 3600 * 1_000_000_000 / Stamp::NANOSECONDS);
            assert!(!refusal.is_within(later, 20_000), "{days} days");
        }
        assert!(!refusal.was_said_within(at(start), 100));
        let said = refusal.refusing(at(start), RefusalKind::Said);
        assert!(said.was_said_within(at(start), 100));
    }

    #[test]
    fn an_answer_ends_a_refusal_and_is_written_now_and_then() {
        let refusal = Refusal::default().refusing(at(5000), RefusalKind::Said);
        let answered = refusal.answering(at(5010)).expect("it makes a difference");
        assert!(!answered.is_within(at(5010), 100));
        assert_eq!(answered.answering(at(5020)), None);
        assert!(answered.answering(at(5100)).is_some());
        assert!(answered.has_answered_since(Stamp::new(5000)));
        assert!(!answered.has_answered_since(Stamp::new(5011)));
        assert!(!Refusal::default().has_answered_since(Stamp::new(5011)));
    }
}
