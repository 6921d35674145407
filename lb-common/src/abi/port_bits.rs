//! A set of ports, as bits.

use bytemuck::{Pod, Zeroable};

const WORDS: usize = (1 << 16) / u64::BITS as usize;

/// What sets of ports there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PortSet {
    /// Ports of services by direct return, and maybe others.
    Direct = 0,
    /// All ports that packets of ours may be sent to, and maybe others: to all other ports, nothing is.
    Ours = 1,
}

impl PortSet {
    /// How many there are.
    pub const COUNT: u32 = 2;
    /// Words of 64 bits that each of them has.
    pub const WORDS: usize = WORDS;
}

/// A set of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct PortBits([u64; WORDS]);

impl PortBits {
    /// In which of its words a port is, and by which bit.
    #[inline(always)]
    pub const fn place(port: u16) -> (usize, u64) {
        ((port / 64) as usize, 1 << (port % 64))
    }

    /// Whether a port is among them.
    #[inline(always)]
    pub const fn has(&self, port: u16) -> bool {
        let (word, bit) = Self::place(port);
        self.0[word] & bit != 0
    }

    /// Adds a port.
    pub const fn add(&mut self, port: u16) {
        let (word, bit) = Self::place(port);
        self.0[word] |= bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_has_a_bit_of_its_own() {
        let mut ports = PortBits::zeroed();
        let some = [0, 1, 63, 64, 8080, 65_535];
        for port in some {
            assert!(!ports.has(port));
            ports.add(port);
        }
        for port in 0..=u16::MAX {
            assert_eq!(ports.has(port), some.contains(&port), "{port}");
        }
    }
}
