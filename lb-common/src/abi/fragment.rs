//! Fragments of datagrams: only the first names ports.

use bytemuck::{Pod, Zeroable};

use super::Tick;
use crate::wire::{Address, NetworkU16};

/// What the fragments of one datagram have in common (RFC 791, section 3.2; RFC 8200, section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Zeroable)]
#[repr(C)]
pub struct FragmentKey<A> {
    /// Sender.
    pub source: A,
    /// Receiver.
    pub destination: A,
    /// The datagram's identification, as it stands in the header.
    pub identification: u32,
    /// Protocol number of IPv4; zero for IPv6.
    pub protocol: u32,
}

// SAFETY: repr(C) of addresses (4 or 16 bytes, aligned to 4), and integers that follow without
// padding; the sizes are asserted in the parent module.
unsafe impl<A: Address> Pod for FragmentKey<A> {}

/// What the first fragment of a datagram said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Fragment {
    /// Sender's port.
    pub source_port: NetworkU16,
    /// Receiver's port.
    pub destination_port: NetworkU16,
    /// Protocol number of TCP or UDP.
    pub protocol: u32,
    /// When it came.
    pub seen: Tick,
}
