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
    // Were one longer than it seems, flows that live would be taken for over.
    let longest = Duration::from_nanos(Tick::NANOSECONDS);
    let jiffy = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_or(longest, Duration::from);
    Beat::shift(jiffy.clamp(Duration::from_nanos(1), longest).as_nanos() as u64)
}

/// A number of ticks in whole seconds.
pub const fn seconds(ticks: u32) -> u64 {
    ticks as u64 * Tick::NANOSECONDS / 1_000_000_000
}
