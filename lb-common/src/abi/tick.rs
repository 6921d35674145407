//! The data path's clock.

use bytemuck::{Pod, Zeroable};

/// A moment on the monotonic clock, in nanoseconds since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// So many nanoseconds after boot.
    #[inline(always)]
    pub const fn from_nanoseconds(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    /// Nanoseconds since boot.
    #[inline(always)]
    pub const fn nanoseconds(self) -> u64 {
        self.0
    }

    /// The tick that it falls into.
    #[inline(always)]
    pub const fn tick(self) -> Tick {
        Tick::from_nanoseconds(self.0)
    }

    /// What TCP's timestamps say at this moment, in units of [`Stamp::NANOSECONDS`].
    #[inline(always)]
    pub const fn stamp(self) -> Stamp {
        Stamp((self.0 >> 19) as u32)
    }
}

/// A moment in units of 2^19 nanoseconds (0.52 ms), which wraps after 26 days: faster than any client's
/// clock of TCP timestamps (at most one a millisecond: RFC 7323, section 5.4), so that connections one
/// after the other never find it behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Stamp(u32);

impl Stamp {
    /// Length of a unit in nanoseconds.
    pub const NANOSECONDS: u64 = 1 << 19;

    /// The stamp of that number.
    #[inline(always)]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Units from `earlier` to this one; zero where `earlier` lies ahead.
    #[inline(always)]
    pub const fn since(self, earlier: Self) -> u32 {
        let units = self.0.wrapping_sub(earlier.0);
        if units > u32::MAX / 2 { 0 } else { units }
    }
}

/// A moment on the monotonic clock, in units of 2^30 nanoseconds (1.07 s): a shift instead of a
/// division per packet. It wraps after 146 years of uptime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Tick(u32);

impl Tick {
    /// Length of a tick in nanoseconds.
    pub const NANOSECONDS: u64 = 1 << 30;

    /// The tick that a moment of the monotonic clock, in nanoseconds since boot, falls into.
    #[inline(always)]
    pub const fn from_nanoseconds(nanoseconds: u64) -> Self {
        Self((nanoseconds >> 30) as u32)
    }

    /// The tick of that number.
    #[inline(always)]
    pub const fn of_number(number: u32) -> Self {
        Self(number)
    }

    /// Its number.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The one that comes so many later.
    #[inline(always)]
    #[must_use]
    pub const fn after(self, ticks: u32) -> Self {
        Self(self.0.wrapping_add(ticks))
    }

    /// Whole ticks from `earlier` to this one; zero where `earlier` lies ahead, as it may when
    /// another CPU just wrote it.
    #[inline(always)]
    pub const fn since(self, earlier: Self) -> u32 {
        let ticks = self.0.wrapping_sub(earlier.0);
        if ticks > u32::MAX / 2 { 0 } else { ticks }
    }
}

/// A moment on a clock that is read without a call: about how many ticks have passed, counted from anywhere. Nobody compares it with
/// other clocks' moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beat(u32);

impl Beat {
    /// The beat that a number of the kernel's jiffies falls into: `shift` is [`Self::shift`] of what one takes.
    #[inline(always)]
    pub const fn of_jiffies(jiffies: u64, shift: u32) -> Self {
        Self((jiffies >> (shift & 63)) as u32)
    }

    /// Its number.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// By how many bits jiffies are shifted, of which one takes so many nanoseconds (1 to 2^30), so that a beat isn't longer than a
    /// tick, and longer than half of one.
    pub const fn shift(jiffy: u64) -> u32 {
        (Tick::NANOSECONDS / jiffy).ilog2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_from_the_future_is_no_age() {
        let now = Tick::from_nanoseconds(10 * Tick::NANOSECONDS);
        let later = Tick::from_nanoseconds(11 * Tick::NANOSECONDS);
        assert_eq!(later.since(now), 1);
        assert_eq!(now.since(later), 0);
    }

    #[test]
    fn a_beat_is_about_a_tick_whatever_a_jiffy_is() {
        // CONFIG_HZ of 100, 250, 300 and 1000.
        for (jiffy, shift) in [(10_000_000, 6), (4_000_000, 8), (3_333_333, 8), (1_000_000, 10)] {
            assert_eq!(Beat::shift(jiffy), shift);
            let beat = jiffy << shift;
            assert!(beat <= Tick::NANOSECONDS && beat > Tick::NANOSECONDS / 2, "{jiffy}");
        }
        assert_eq!(Beat::of_jiffies(0xffff, 8).number(), 0xff);
    }
}
