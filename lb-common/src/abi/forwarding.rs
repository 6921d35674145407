//! How packets reach the backend.

use bytemuck::{Pod, Zeroable};

use super::word::word;

word! {
    /// How packets reach the backend.
    Forwarding {
        /// Source and destination are translated, addresses and ports; replies pass through us.
        FullNat = 0 "full-nat",
        /// The destination is translated; replies pass through us, by the backend's route.
        Nat = 1 "nat",
        /// The frame goes to the backend's hardware address; replies go straight to the client.
        Dsr = 2 "dsr",
        /// Within another IP header (RFC 2003); replies go straight to the client.
        Ipip = 3 "ipip",
        /// Within UDP (Generic UDP Encapsulation, variant 1); replies go straight to the client.
        Gue = 4 "gue",
    }
}

word! {
    /// An address family.
    AddressFamily {
        /// IPv4.
        Ipv4 = 0 "ipv4",
        /// IPv6.
        Ipv6 = 1 "ipv6",
    }
}

impl Forwarding {
    /// Every one, the default first.
    pub const ALL: [Self; 5] = [Self::FullNat, Self::Nat, Self::Dsr, Self::Ipip, Self::Gue];

    /// Whether replies pass through us.
    #[inline(always)]
    pub const fn sees_replies(self) -> bool {
        self.0 <= Self::Nat.0
    }

    /// Whether the packet travels within an outer header.
    #[inline(always)]
    pub const fn encapsulates(self) -> bool {
        self.0 >= Self::Ipip.0
    }

    /// Places for what is known by forwarding: as many as [`Self::place`] can tell.
    pub const PLACES: usize = Self::ALL.len().next_power_of_two();

    /// Its place among those.
    #[inline(always)]
    pub(super) const fn place(self) -> usize {
        self.0 as usize % Self::PLACES
    }

    /// The way by its number, from zero on, among those where replies pass through us, or among those where they don't.
    #[inline(always)]
    pub const fn number_of_way(self) -> u8 {
        if self.sees_replies() { self.0 } else { self.0.wrapping_sub(Self::Dsr.0) }
    }

    /// The way of a number from [`Self::number_of_way`], where replies pass through us.
    #[inline(always)]
    pub const fn through(number: u8) -> Self {
        Self(number & 1)
    }

    /// The same where they don't.
    #[inline(always)]
    pub const fn direct(number: u8) -> Self {
        Self(number + Self::Dsr.0)
    }

    /// Whether the source address is ours.
    #[inline(always)]
    pub const fn hides_client(self) -> bool {
        self.0 == Self::FullNat.0
    }
}
