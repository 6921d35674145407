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
}
