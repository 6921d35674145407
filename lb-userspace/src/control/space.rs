//! Which part of a map that holds many things of different sizes belongs to which: of that of all rings,
//! and of that of all pools of source ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// How long a range rests before it is given out again: far longer than a packet that still reads
/// what lay there can take.
pub const GRACE: Duration = Duration::from_secs(1);

/// The ranges of a map that are in use or resting.
#[derive(Clone, Debug)]
pub struct Space {
    room: u32,
    /// By where they begin.
    ranges: BTreeMap<u32, Range>,
    /// Nothing below is free, as far as is known.
    full_below: u32,
    /// How many are resting.
    resting: usize,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    size: u32,
    /// `None` while in use.
    freed: Option<Instant>,
}

impl Space {
    /// A map with room for so many, all of it free.
    pub const fn new(room: u32) -> Self {
        Self { room, ranges: BTreeMap::new(), full_below: 0, resting: 0 }
    }

    /// Marks a range as in use that was given out by an earlier controller, perhaps not for the
    /// first time.
    pub fn adopt(&mut self, offset: u32, size: u32) {
        self.ranges.entry(offset).or_insert(Range { size, freed: None });
    }

    /// Gives out the first range of that size that is free at `now`.
    pub fn allocate(&mut self, size: u32, now: Instant) -> Option<u32> {
        if self.resting > 0 {
            let rests = |range: &Range| {
                range.freed.is_none_or(|freed| now.saturating_duration_since(freed) < GRACE)
            };
            let before = self.ranges.len();
            self.ranges.retain(|_, range| rests(range));
            let rested = before - self.ranges.len();
            if rested > 0 {
                self.resting -= rested;
                self.full_below = 0;
            }
        }
        let from = self.full_below;
        let offset = self.first_free(from, size).or_else(|| match from {
            0 => None,
            // A smaller one than that which led there may fit before it.
            _ => self.first_free(0, size),
        })?;
        if offset == from {
            self.full_below = offset + size;
        }
        self.adopt(offset, size);
        Some(offset)
    }

    /// Where the first gap of that size begins from `start` on, which lies in no range.
    fn first_free(&self, start: u32, size: u32) -> Option<u32> {
        let mut offset = start;
        for (begin, range) in self.ranges.range(start..) {
            if begin.saturating_sub(offset) >= size {
                break;
            }
            offset = offset.max(begin + range.size);
        }
        (u64::from(offset) + u64::from(size) <= u64::from(self.room)).then_some(offset)
    }

    /// Takes back the ranges that don't begin at any of `used`; they rest from `now` on.
    pub fn keep(&mut self, used: &BTreeSet<u32>, now: Instant) {
        for (offset, range) in &mut self.ranges {
            if range.freed.is_none() && !used.contains(offset) {
                range.freed = Some(now);
                self.resting += 1;
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
