//! What a measured run is made of, in a map that userspace writes.

/// 64-bit words at the beginning of each frame that are written anew.
pub(crate) const WORDS: usize = 10;

/// What is run again and again, and how far it has come.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Run {
    /// The first bytes of each frame.
    pub(crate) template: [u64; WORDS],
    /// How many bytes a frame has, at least those of the template.
    pub(crate) length: u32,
    /// How many flows there are.
    pub(crate) flows: u32,
    /// Whose turn it is.
    pub(crate) next: u32,
    /// Makes the size a multiple of eight.
    pub(crate) reserved: u32,
    /// How many frames were written.
    pub(crate) written: u64,
}

/// What a frame of a flow has of its own: of IPv4, bytes 24 to 39 (checksum, addresses, ports), of IPv6 bytes 32 to 39 (end of
/// the source address) and 50 to 57 (end of the destination address, ports). The fewer they are, the less of the
/// processor's caches do they take from what is measured.
pub(crate) type Variation = [u64; 2];

/// The template's words that it stands in, of IPv4.
pub(crate) const OWN_IPV4: [usize; 2] = [3, 4];
/// Of IPv6 the first one, and those that share the second.
pub(crate) const OWN_IPV6: (usize, [usize; 2]) = (4, [6, 7]);
/// Bits of the first of those that aren't its own.
pub(crate) const SHARED: u32 = 16;

/// 64-bit words of the frame that is sent again and again: its headers.
pub(crate) const SENT_WORDS: usize = 7;

/// What its IPv4 header has as type of service, and no other frame.
pub(crate) const MARK: u8 = 0xb8;
