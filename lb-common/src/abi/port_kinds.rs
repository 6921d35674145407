//! What is known of destination ports before anything is looked up.

/// What packets to a port may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortKind(u64);

impl PortKind {
    /// Nothing is known: they may be anything.
    pub const ANY: Self = Self(0);
    /// They belong to no service and to no flow.
    pub const FOREIGN: Self = Self(1);
    /// They may be for a service by direct return.
    pub const DIRECT: Self = Self(2);

    /// Whether nothing of the data path's is there.
    #[inline(always)]
    pub const fn is_foreign(self) -> bool {
        self.0 & Self::FOREIGN.0 != 0
    }

    /// Whether a service by direct return may be there.
    #[inline(always)]
    pub const fn is_direct(self) -> bool {
        self.0 & Self::DIRECT.0 != 0
    }

    /// What it says of a port, in the word of [`Self::word`].
    #[inline(always)]
    pub const fn bits(self, port: u16) -> u64 {
        self.0 << (port % PORTS_A_WORD * BITS)
    }

    /// The number of the word that tells of a port.
    #[inline(always)]
    pub const fn word(port: u16) -> usize {
        (port / PORTS_A_WORD) as usize
    }

    /// What the word says of a port.
    #[inline(always)]
    pub const fn of(word: u64, port: u16) -> Self {
        Self(word >> (port % PORTS_A_WORD * BITS) & ((1 << BITS) - 1))
    }
}

const BITS: u16 = 2;
const PORTS_A_WORD: u16 = 64 / BITS;

/// Words for all ports.
pub const PORT_KIND_WORDS: usize = (1 << 16) / PORTS_A_WORD as usize;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_has_bits_of_its_own() {
        let mut words = [0; PORT_KIND_WORDS];
        for port in [0, 1, 31, 32, 8080, 65_535] {
            words[PortKind::word(port)] |= PortKind::FOREIGN.bits(port);
        }
        words[PortKind::word(8080)] |= PortKind::DIRECT.bits(8080);
        for port in 0..=u16::MAX {
            let kind = PortKind::of(words[PortKind::word(port)], port);
            let is_foreign = [0, 1, 31, 32, 8080, 65_535].contains(&port);
            assert_eq!((kind.is_foreign(), kind.is_direct()), (is_foreign, port == 8080), "{port}");
        }
        assert_eq!(PortKind::of(0, 80), PortKind::ANY);
    }
}
