//! Sets of ports, as bits.

use bytemuck::{Pod, Zeroable};

const WORDS: usize = (1 << 16) / u64::BITS as usize;

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

/// Which sets each port is in: for each 64 ports, a word of each set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct PortBits([[u64; PortSet::ALL.len()]; WORDS]);

/// Which sets a port is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// As in [`PortSet::Direct`].
    pub direct: bool,
    /// As in [`PortSet::Ours`].
    pub ours: bool,
    /// As in [`PortSet::Nat`].
    pub nat: bool,
}

impl PortBits {
    /// Which of all words says whether a port is in a set, and by which bit.
    #[inline(always)]
    pub const fn place(set: PortSet, port: u16) -> (usize, u64) {
        ((port / 64) as usize * PortSet::ALL.len() + set as usize, 1 << (port % 64))
    }

    /// Which sets a port is in.
    #[inline(always)]
    pub const fn of(&self, port: u16) -> Membership {
        let [direct, ours, nat] = self.0[(port / 64) as usize];
        let bit = port % 64;
        Membership {
            direct: direct >> bit & 1 != 0,
            ours: ours >> bit & 1 != 0,
            nat: nat >> bit & 1 != 0,
        }
    }

    /// Adds a port to a set.
    pub const fn add(&mut self, set: PortSet, port: u16) {
        self.0[(port / 64) as usize][set as usize] |= 1 << (port % 64);
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
        let words: [u64; WORDS * PortSet::ALL.len()] = bytemuck::cast(ports);
        for port in 0..=u16::MAX {
            let expected = Membership {
                direct: direct.contains(&port),
                ours: ours.contains(&port),
                nat: nat.contains(&port),
            };
            assert_eq!(ports.of(port), expected, "{port}");
            let of_set = [
                (PortSet::Direct, expected.direct),
                (PortSet::Ours, expected.ours),
                (PortSet::Nat, expected.nat),
            ];
            for (set, is_in) in of_set {
                let (word, bit) = PortBits::place(set, port);
                assert_eq!(words[word] & bit != 0, is_in, "{set:?}, {port}");
            }
        }
    }
}
