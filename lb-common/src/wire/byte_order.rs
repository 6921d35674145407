//! Integers in network byte order.

use bytemuck::{Pod, Zeroable};

macro_rules! network_integer {
    ($name:ident, $native:ty, $what:literal) => {
        #[doc = $what]
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable,
        )]
        #[repr(transparent)]
        pub struct $name($native);

        impl $name {
            /// Converts from the machine's own byte order.
            #[inline(always)]
            pub const fn new(native: $native) -> Self {
                Self(native.to_be())
            }

            /// Converts to the machine's own byte order.
            #[inline(always)]
            pub const fn get(self) -> $native {
                <$native>::from_be(self.0)
            }

            /// The bytes as they stand in the frame, read as an integer of this machine. Good for
            /// one's-complement sums, which don't depend on the byte order (RFC 1071, section 2).
            #[inline(always)]
            pub const fn raw(self) -> $native {
                self.0
            }
        }
    };
}

network_integer!(NetworkU16, u16, "A 16-bit integer in network byte order.");
network_integer!(NetworkU32, u32, "A 32-bit integer in network byte order.");
