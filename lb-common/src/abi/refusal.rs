//! Whether backends take connections, as the packets themselves show.

use bytemuck::{Pod, Zeroable};

use super::Moment;

/// When a backend last refused a connection, and hasn't taken one since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Refusal {
    /// A [`super::Stamp`], whose lowest bit is set; 0: it has taken a connection since.
    at: u32,
    /// Zero.
    reserved: u32,
}

impl Refusal {
    /// One at `now`.
    #[inline(always)]
    #[must_use]
    pub const fn at(now: Moment) -> Self {
        Self { at: now.stamp().number() | 1, reserved: 0 }
    }

    /// Whether it has taken a connection since.
    #[inline(always)]
    pub const fn is_over(self) -> bool {
        self.at == 0
    }

    /// Whether it was within so many units of a [`super::Stamp`] before `now`, and the backend has taken no connection since.
    #[inline(always)]
    pub const fn is_within(self, now: Moment, units: u32) -> bool {
        self.at != 0 && age(now, self.at) <= units
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
    use super::{super::Stamp, *};

    const fn at(units: u64) -> Moment {
        Moment::from_nanoseconds(units * Stamp::NANOSECONDS)
    }

    #[test]
    fn a_refusal_is_over_after_a_while_and_stays_so_whatever_the_clock_says() {
        let start = 1 << 20;
        let refusal = Refusal::at(at(start));
        assert!(refusal.is_within(at(start), 100) && refusal.is_within(at(start - 2), 100));
        assert!(refusal.is_within(at(start + 99), 100) && !refusal.is_within(at(start + 102), 100));
        for days in 1..26 {
            let later = at(start + days * 24 * 3600 * 1_000_000_000 / Stamp::NANOSECONDS);
            assert!(!refusal.is_within(later, 20_000), "{days} days");
        }
        assert!(!refusal.is_over() && Refusal::default().is_over());
        assert!(!Refusal::default().is_within(at(0), 100));
    }
}
