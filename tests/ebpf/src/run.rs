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

/// What a frame of a flow has of its own: two words of the template's, of IPv4 from byte 24 on (checksum, addresses,
/// ports), of IPv6 from bytes 32 (end of the source address) and 48 (end of the destination address, source port).
pub(crate) type Variation = [u64; 2];

/// 64-bit words of the frame that is sent again and again: its headers.
pub(crate) const SENT_WORDS: usize = 7;

/// What its IPv4 header has as type of service, and no other frame.
pub(crate) const MARK: u8 = 0xb8;
