//! A set of ports, as bits.

use bytemuck::{Pod, Zeroable};

const WORDS: usize = (1 << 16) / u64::BITS as usize;

/// A set of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct PortBits([u64; WORDS]);

impl PortBits {
    /// Whether a port is among them.
    #[inline(always)]
    pub const fn has(&self, port: u16) -> bool {
        self.0[(port / 64) as usize] >> (port % 64) & 1 != 0
    }

    /// Adds a port.
    pub const fn add(&mut self, port: u16) {
        self.0[(port / 64) as usize] |= 1 << (port % 64);
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
