//! The data path's clock, read from userspace.

use std::time::Duration;

use lb_common::abi::{Beat, Tick};
use nix::time::{ClockId, clock_getres, clock_gettime};

/// The present tick, on the clock that the program reads (`CLOCK_MONOTONIC_COARSE`).
pub fn now() -> Tick {
    let time =
        clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from);
    Tick::from_nanoseconds(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// [`Beat::shift`] of this kernel's jiffies: the clock that [`now`] reads goes by them (`KTIME_LOW_RES` in kernel/time/hrtimer.c).
pub fn beat_shift() -> u32 {
    let jiffy =
        clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from);
    Beat::shift(u64::try_from(jiffy.as_nanos()).unwrap_or(0).clamp(1, Tick::NANOSECONDS))
}

/// A number of ticks in whole seconds.
pub const fn seconds(ticks: u32) -> u64 {
    ticks as u64 * Tick::NANOSECONDS / 1_000_000_000
}
