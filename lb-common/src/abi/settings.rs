//! What holds for the whole data path.

use bytemuck::{Pod, Zeroable};

use super::same_words;
use crate::wire::{MacAddress, Vlans};

/// What holds for the whole data path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Settings {
    /// [`super::VERSION`] of the controller that wrote the maps.
    pub abi_version: u32,
    /// Seed of the hash that picks ring slots.
    pub hash_seed: u32,
    /// First port that full NAT sends from.
    pub nat_port_first: u32,
    /// Number of such ports; with the first, at most 65,536.
    pub nat_port_count: u32,
    /// Longest IP datagram that is forwarded, in bytes: the largest MTU of the interfaces.
    pub maximum_datagram: u32,
    /// 1: frames that leave by the interface they came in on are redirected to it, like those that
    /// leave by another. A veth whose other end has no XDP program leaves what is sent by `XDP_TX`
    /// lying until something else comes along (`veth_xdp_flush` in drivers/net/veth.c).
    pub redirect_always: u32,
    /// 1: some backends answer to the client's own address and port, so a packet to any port may
    /// belong to a half-open handshake.
    pub replies_anywhere: u32,
    /// Process id of the controller that wrote this last.
    pub controller: u32,
    /// Nanoseconds between two SYNs of one source, in the long run; 0: there is no limit.
    pub syn_interval: u32,
    /// Number of the network namespace that the controller runs in: the inode of its `/proc/self/ns/net`.
    pub namespace: u32,
    /// A number that nobody outside knows.
    pub secret: u64,
    /// Number of sets of traces of flows, a power of two, less one: see [`crate::datapath::trace_sets`].
    pub trace_mask: u32,
    /// The same of flows whose replies pass through us.
    pub nat_trace_mask: u32,
    /// [`super::Beat::shift`] of the kernel's jiffies.
    pub beat_shift: u32,
    /// Zero.
    pub reserved: u32,
}

/// A hardware address that an interface takes frames for: its own, and those of interfaces on top
/// of it, such as VLANs and Keepalived's virtual ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct LocalMac {
    /// Interface index.
    pub interface: u32,
    /// Hardware address.
    pub address: MacAddress,
    /// Zero.
    pub reserved: u16,
    /// The VLANs that such frames are in.
    pub vlans: Vlans,
}

/// One of our hardware addresses, in its place among [`STATIONS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Station {
    /// Which one; zeros: none stands there.
    pub mac: LocalMac,
    /// Longest IP datagram that can be sent from there, in bytes.
    pub maximum_datagram: u32,
    /// Zeros: with them, where it lies is found by a shift.
    pub reserved: [u32; 3],
}

/// Places for the hardware addresses that most frames are for.
pub const STATIONS: u32 = 256;

impl LocalMac {
    /// Where it stands among [`STATIONS`] places, if it is the only one or first that belongs there.
    #[inline(always)]
    pub fn place(&self) -> u32 {
        let [.., before, last] = self.address.bytes();
        let Vlans([outer, inner]) = self.vlans;
        let address = (u32::from(before) << 8 | u32::from(last)).wrapping_mul(0x85eb_ca6b);
        let vlans = (outer.word() << 16 | inner.word()).wrapping_mul(0xc2b2_ae35);
        let mixed = (self.interface ^ address ^ vlans).wrapping_mul(0x9e37_79b1);
        (mixed >> 16) % STATIONS
    }

    /// Whether both are the same one.
    #[inline(always)]
    pub fn same(&self, other: &Self) -> bool {
        same_words::<4>(bytemuck::cast_ref(self), bytemuck::cast_ref(other))
    }
}
