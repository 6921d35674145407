//! Which part of a map that holds many things of different sizes belongs to which: of that of all rings,
//! and of that of all pools of source ports.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// How long a range rests before it is given out again: far longer than a packet that still reads
/// what lay there can take.
pub const GRACE: Duration = Duration::from_secs(1);

/// The ranges of a map that are in use or resting.
#[derive(Clone, Debug)]
pub struct Space {
    room: u32,
    ranges: Vec<Range>,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    offset: u32,
    size: u32,
    /// `None` while in use.
    freed: Option<Instant>,
}

impl Space {
    /// A map with room for so many, all of it free.
    pub const fn new(room: u32) -> Self {
        Self { room, ranges: Vec::new() }
    }

    /// Marks a range as in use that was given out by an earlier controller, perhaps not for the
    /// first time.
    pub fn adopt(&mut self, offset: u32, size: u32) {
        if self.ranges.iter().any(|range| range.offset == offset) {
            return;
        }
        self.ranges.push(Range { offset, size, freed: None });
        self.ranges.sort_by_key(|range| range.offset);
    }

    /// Gives out the first range of that size that is free at `now`.
    pub fn allocate(&mut self, size: u32, now: Instant) -> Option<u32> {
        self.ranges.retain(|range| {
            range.freed.is_none_or(|freed| now.saturating_duration_since(freed) < GRACE)
        });
        let mut offset = 0u32;
        for range in &self.ranges {
            if range.offset.saturating_sub(offset) >= size {
                break;
            }
            offset = offset.max(range.offset + range.size);
        }
        if u64::from(offset) + u64::from(size) > u64::from(self.room) {
            return None;
        }
        self.adopt(offset, size);
        Some(offset)
    }

    /// Takes back the ranges that don't begin at any of `used`; they rest from `now` on.
    pub fn keep(&mut self, used: &BTreeSet<u32>, now: Instant) {
        for range in &mut self.ranges {
            if !used.contains(&range.offset) {
                range.freed.get_or_insert(now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_range_rests_and_then_is_used_again() {
        let start = Instant::now();
        let mut space = Space::new(300);
        assert_eq!(space.allocate(100, start), Some(0));
        assert_eq!(space.allocate(100, start), Some(100));
        space.keep(&BTreeSet::from([100]), start);
        assert_eq!(space.allocate(100, start), Some(200));
        assert_eq!(space.allocate(100, start + GRACE / 2), None);
        assert_eq!(space.allocate(101, start + GRACE), None);
        assert_eq!(space.allocate(60, start + GRACE), Some(0));
        assert_eq!(space.allocate(40, start + GRACE), Some(60));
    }

    #[test]
    fn an_adopted_range_is_not_given_out() {
        let mut space = Space::new(300);
        space.adopt(50, 100);
        assert_eq!(space.allocate(60, Instant::now()), Some(150));
        assert_eq!(space.allocate(50, Instant::now()), Some(0));
    }
}
