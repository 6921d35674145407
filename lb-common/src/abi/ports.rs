//! The source ports that full NAT has left to one backend, those of all addresses that it sends from.
//!
//! A pool lies in the map of all pools as 64-bit words: a head, and two generations of one bit for each
//! port, set where the port is free. Ports are taken from one generation in their order, and given back
//! to the other; when the first is empty, they change places. So a port isn't used again before all
//! those that were free when it was given back.
//!
//! The bits are hints: what a port is used for is what the tables of flows say. A bit may say that a
//! port is taken which isn't any longer, such as that of an evicted handshake, until the controller
//! sees it.

/// How far a pool is used: the word at its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolHead {
    /// The word of the present generation from which on ports may be free.
    pub cursor: u16,
    /// Counts the generations; the lowest bit says which of the two is the present one.
    pub generation: u16,
    /// Where it goes on to look for a port that can be had though none is free; counts ports.
    pub robbed: u32,
}

impl PoolHead {
    /// From the word.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { cursor: word as u16, generation: (word >> 16) as u16, robbed: (word >> 32) as u32 }
    }

    /// As a word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.cursor as u64 | (self.generation as u64) << 16 | (self.robbed as u64) << 32
    }
}

/// Ports that one word has bits for.
pub const PORTS_A_WORD: u32 = 64;

/// Words that one generation has for so many ports.
#[inline(always)]
pub const fn port_words(ports: u32) -> u32 {
    ports.div_ceil(PORTS_A_WORD)
}

/// Words that a pool of so many ports has.
#[inline(always)]
pub const fn pool_words(ports: u32) -> u32 {
    1 + 2 * port_words(ports)
}

/// Index of a generation's first word, in the pool that begins at word `pool`.
#[inline(always)]
pub const fn generation_start(pool: u32, ports: u32, generation: u16) -> u32 {
    pool + 1 + (generation as u32 & 1) * port_words(ports)
}
