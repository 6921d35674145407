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
    /// What UDP has where it has no checksum.
    pub const NONE: Self = Self(0);

    /// The checksum after the change that `delta` stands for.
    #[inline(always)]
    pub const fn updated(self, delta: ChecksumDelta) -> Self {
        Self(!add(!self.0, delta.0))
    }

    /// The checksum over `words`, with the checksum field itself left out or zero.
    #[inline(always)]
    pub const fn from_sum(sum: u32) -> Self {
        Self(!fold(sum as u64))
    }

    /// The same of a sum over words of 32 bits, of which there may be some thousands.
    #[inline(always)]
    pub const fn from_words(sum: u64) -> Self {
        Self(!fold_words(sum))
    }

    /// Whether the sum over a header's words, of 16 or 32 bits, checksum included, is that of a right checksum. A header of zeros has
    /// none.
    ///
    /// It is, where 65,535 divides the sum. Times a number by which an odd divisor becomes 1, modulo 2^64, multiples of it become
    /// what they are multiplied by, and all others more than that can be (Granlund and Montgomery, 1994).
    #[inline(always)]
    pub const fn is_right(sum: u64) -> bool {
        const DIVISOR: u64 = 0xffff;
        const INVERSE: u64 = 0xfffe_fffe_fffe_ffff;
        const { assert!(DIVISOR.wrapping_mul(INVERSE) == 1) };
        sum.wrapping_mul(INVERSE).wrapping_sub(1) < u64::MAX / DIVISOR
    }

    /// UDP's checksum after the change that `delta` stands for: zero says that there is none, and
    /// stays; one that comes out as zero is sent as all ones, which is as much (RFC 768).
    #[inline(always)]
    pub const fn updated_udp(self, delta: ChecksumDelta) -> Self {
        if self.is_none() {
            return self;
        }
        let updated = self.updated(delta);
        if updated.0 == 0 { Self(0xffff) } else { updated }
    }

    /// Whether this is [`Self::NONE`].
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == Self::NONE.0
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
        Self(add(!old, new))
    }

    /// The change of aligned 32-bit words, of which there may be some thousands.
    #[inline(always)]
    pub fn of_u32<const WORDS: usize>(old: [u32; WORDS], new: [u32; WORDS]) -> Self {
        let mut sum = 0;
        for word in 0..WORDS {
            sum += u64::from(!old[word]) + u64::from(new[word]);
        }
        Self(fold_words(sum))
    }

    /// Both changes.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(add(self.0, other.0))
    }
}

/// The sum over 32-bit words.
#[inline(always)]
pub(super) fn sum_of<const WORDS: usize>(words: [u32; WORDS]) -> u64 {
    let mut sum = 0;
    for word in words {
        sum += u64::from(word);
    }
    sum
}

/// Folds a sum of 32-bit words, of which there may be some thousands, to 16 bits: 2^32 and 2^16 are both 1 modulo 2^16 - 1.
#[inline(always)]
const fn fold_words(sum: u64) -> u16 {
    fold((sum & 0xffff_ffff) + (sum >> 32))
}

/// Folds a sum of at most 65,537 words to 16 bits with end-around carry, or one of two words of 32 bits, the upper of which is
/// less than 65,536.
///
/// Multiplied by 2^32 + 2^16 + 1, all its digits of 16 bits are added up in one place, and the carry from below it is that of
/// the lower two.
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    (sum.wrapping_mul(0x1_0001_0001) >> 32) as u16
}

/// Adds two words with end-around carry.
#[inline(always)]
const fn add(one: u16, other: u16) -> u16 {
    let sum = one as u32 + other as u32;
    (sum + (sum >> 16)) as u16
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
        fn many_words_at_once_are_as_good_as_one_by_one(
            old in any::<[u32; 4]>(),
            new in any::<[u32; 4]>(),
            start in any::<u16>(),
        ) {
            let mut one_by_one = ChecksumDelta::ZERO;
            for word in 0..4 {
                one_by_one = one_by_one.and(ChecksumDelta::of_u32([old[word]], [new[word]]));
            }
            let at_once = Checksum(start).updated(ChecksumDelta::of_u32(old, new));
            let expected = Checksum(start).updated(one_by_one);
            // Zero has two forms.
            let form = |checksum: Checksum| if checksum.raw() == 0xffff { 0 } else { checksum.raw() };
            prop_assert_eq!(form(at_once), form(expected));
        }

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
            let delta = ChecksumDelta::of_u32([old], [new]);

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

    /// Adds up all digits of 16 bits until there is one.
    fn folded(mut sum: u64) -> u16 {
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn sums_are_folded_with_every_carry() {
        let digits = [0, 1, 2, 0x7fff, 0x8000, 0xfffd, 0xfffe, 0xffff];
        for upper in digits {
            for lower in digits {
                assert_eq!(add(upper, lower), folded(u64::from(upper) + u64::from(lower)));
                let word = u64::from(upper) << 16 | u64::from(lower);
                assert_eq!(fold(word), folded(word), "{word:#x}");
                for words in digits {
                    let sum = u64::from(words) << 32 | word;
                    assert_eq!(fold_words(sum), folded(sum), "{sum:#x}");
                }
            }
        }
    }

    fn right_sum_with_error(words: &[u16], error: u16) -> u16 {
        !fold((sum(words) + u32::from(error)).into())
    }
}
