//! Sets of ports, as bits.

use bytemuck::{Pod, Zeroable};

use crate::wire::NetworkU16;

/// Bits of a port, one for each set.
const BITS: u32 = 4;
const PORTS_A_WORD: u32 = u64::BITS / BITS;
const WORDS: usize = (1 << 16) / PORTS_A_WORD as usize;

/// What sets of ports there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortSet {
    /// Ports of services by direct return, and maybe others.
    Direct = 0,
    /// All ports that packets of ours may be sent to, and maybe others: to all other ports, nothing is.
    Ours = 1,
    /// Ports of services whose replies pass through us, and maybe others.
    Nat = 2,
}

impl PortSet {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Direct, Self::Ours, Self::Nat];
}

/// Which sets each port is in: four bits for each, in the order of the numbers that ports' bytes in packets are read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct PortBits([u64; WORDS]);

/// Which sets a port is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Membership(u64);

impl Membership {
    /// Whether it is in a set.
    #[inline(always)]
    pub const fn has(self, set: PortSet) -> bool {
        self.0 >> set as u32 & 1 != 0
    }
}

impl PortBits {
    /// Which word says of a port what sets it is in, and from which bit on.
    #[inline(always)]
    const fn bits(port: NetworkU16) -> (usize, u32) {
        let number = port.raw() as u32;
        ((number / PORTS_A_WORD) as usize, number % PORTS_A_WORD * BITS)
    }

    /// Which of all words says whether a port is in a set, and by which bit.
    #[inline(always)]
    pub const fn place(set: PortSet, port: u16) -> (usize, u64) {
        let (word, first) = Self::bits(NetworkU16::new(port));
        (word, 1 << (first + set as u32))
    }

    /// Which sets a port is in.
    #[inline(always)]
    pub const fn of(&self, port: NetworkU16) -> Membership {
        let (word, first) = Self::bits(port);
        Membership(self.0[word] >> first)
    }

    /// Adds a port to a set.
    pub const fn add(&mut self, set: PortSet, port: u16) {
        let (word, bit) = Self::place(set, port);
        self.0[word] |= bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_has_a_bit_of_its_own_in_each_set() {
        let mut ports = PortBits::zeroed();
        let (ours, direct) = ([0, 1, 63, 64, 8080, 65_535], [1, 62, 8080, 65_534]);
        let nat = [2, 62, 63, 8081, 65_535];
        ours.iter().for_each(|port| ports.add(PortSet::Ours, *port));
        direct.iter().for_each(|port| ports.add(PortSet::Direct, *port));
        nat.iter().for_each(|port| ports.add(PortSet::Nat, *port));
        let words: [u64; WORDS] = bytemuck::cast(ports);
        for port in 0..=u16::MAX {
            for (set, of_set) in [
                (PortSet::Ours, &ours[..]),
                (PortSet::Direct, &direct[..]),
                (PortSet::Nat, &nat[..]),
            ] {
                let is_in = of_set.contains(&port);
                assert_eq!(ports.of(NetworkU16::new(port)).has(set), is_in, "{set:?}, {port}");
                let (word, bit) = PortBits::place(set, port);
                assert_eq!(words[word] & bit != 0, is_in, "{set:?}, {port}");
            }
        }
    }
}
