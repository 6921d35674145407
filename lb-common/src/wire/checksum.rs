//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use bytemuck::{Pod, Zeroable};

/// A checksum field as it stands in a header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Checksum(u16);

/// What has to be added to a checksum's complement when header words change: `~m + m'` of RFC 1624,
/// equation 3, summed over the changed words and folded to 16 bits.
///
/// A delta is applied to whatever checksum stands in the packet, so a checksum that was wrong stays
/// wrong by the same amount and its receiver can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct ChecksumDelta(u16);

impl Checksum {
    /// The checksum after the change that `delta` stands for.
    #[inline(always)]
    pub const fn updated(self, delta: ChecksumDelta) -> Self {
        Self(!fold(!self.0 as u32 + delta.0 as u32))
    }

    /// The checksum over `words`, with the checksum field itself left out or zero.
    #[inline(always)]
    pub const fn from_sum(sum: u32) -> Self {
        Self(!fold(sum))
    }

    /// Whether the sum over a header's words, checksum included, is that of a right checksum.
    #[inline(always)]
    pub const fn is_right(sum: u32) -> bool {
        fold(sum) == 0xffff
    }

    /// The field's bytes, read as an integer of this machine.
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        self.0
    }
}

impl ChecksumDelta {
    /// No change.
    pub const ZERO: Self = Self(0);

    /// The change of one 16-bit word.
    #[inline(always)]
    pub const fn of_u16(old: u16, new: u16) -> Self {
        Self(fold(!old as u32 + new as u32))
    }

    /// The change of one aligned 32-bit word.
    #[inline(always)]
    pub const fn of_u32(old: u32, new: u32) -> Self {
        Self::of_u16(old as u16, new as u16)
            .and(Self::of_u16((old >> 16) as u16, (new >> 16) as u16))
    }

    /// Both changes.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(fold(self.0 as u32 + other.0 as u32))
    }
}

/// Folds a sum of at most 65,537 words to 16 bits with end-around carry.
#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn sum(words: &[u16]) -> u32 {
        words.iter().map(|word| u32::from(*word)).sum()
    }

    #[test]
    fn rfc_1624_example_keeps_the_only_zero() {
        // RFC 1624, section 4: HC = 0xdd2f, m = 0x5555, m' = 0x3285 gives 0x0000, not 0xffff.
        let updated = Checksum(0xdd2f).updated(ChecksumDelta::of_u16(0x5555, 0x3285));
        assert_eq!(updated.raw(), 0x0000);
    }

    proptest! {
        #[test]
        fn an_update_equals_a_new_sum(
            words in prop::collection::vec(any::<u16>(), 10),
            index in 0usize..9,
            new in any::<u32>(),
            error in any::<u16>(),
        ) {
            let old = u32::from(words[index]) | (u32::from(words[index + 1]) << 16);
            let mut changed: Vec<u16> = words.clone();
            changed[index] = new as u16;
            changed[index + 1] = (new >> 16) as u16;
            prop_assume!(sum(&words) != 0 && sum(&changed) != 0);
            let delta = ChecksumDelta::of_u32(old, new);

            let right = Checksum::from_sum(sum(&words)).updated(delta);
            prop_assert_eq!(right, Checksum::from_sum(sum(&changed)));

            // A wrong checksum stays wrong by the same amount.
            let wrong = Checksum(right_sum_with_error(&words, error)).updated(delta);
            let expected = right_sum_with_error(&changed, error);
            let same = wrong.raw() == expected
                || (wrong.raw() == 0 && expected == 0xffff)
                || (wrong.raw() == 0xffff && expected == 0);
            prop_assert!(same, "{:#x} {:#x}", wrong.raw(), expected);
        }
    }

    fn right_sum_with_error(words: &[u16], error: u16) -> u16 {
        !fold(sum(words) + u32::from(error))
    }
}
