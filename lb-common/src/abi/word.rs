//! Small numbers that stand for words.

/// A number in a map that stands for one of a few words.
macro_rules! word {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $value:literal $word:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
        #[repr(transparent)]
        pub struct $name(u8);

        #[allow(non_upper_case_globals, reason = "the constants read like variants of an enum")]
        impl $name {
            $($(#[$doc])* pub const $variant: Self = Self($value);)*

            /// The number.
            pub const fn number(self) -> u8 {
                self.0
            }

            /// The word for it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                    _ => "invalid",
                }
            }
        }
    };
}

pub(super) use word;
