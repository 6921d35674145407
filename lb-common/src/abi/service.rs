//! Services: what clients reach.

use bytemuck::{Pod, Zeroable};

use super::Ring;
use crate::wire::{Address, NetworkU16};

/// Address, port and protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Zeroable)]
#[repr(C)]
pub struct ServiceKey<A> {
    /// The address that clients send to.
    pub address: A,
    /// The port that clients send to.
    pub port: NetworkU16,
    /// Protocol number in one byte; the other is zero.
    pub protocol: u16,
}

// SAFETY: repr(C) of an address (4 or 16 bytes, aligned to 4) and integers that follow without
// padding; the sizes are asserted in the parent module.
unsafe impl<A: Address> Pod for ServiceKey<A> {}

/// How a service is balanced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Service {
    /// Where its ring lies. Empty where no backend takes new flows.
    pub ring: Ring,
    /// Index into the service counters and infos.
    pub index: u32,
    /// Number of the list of networks that may and may not connect; 0: everyone may.
    pub access: u32,
    /// For how long a client keeps its backend after its last connection, in ticks; 0: it doesn't.
    pub affinity: u32,
    /// Bits of [`service_options`].
    pub options: u32,
    /// Weights of all backends together that take new flows.
    pub weights: u32,
    /// How many connections a backend may have before new ones go elsewhere, in percent of its share of all; 0: any
    /// number.
    pub most_load: u32,
}

impl Service {
    /// Whether a connection's addresses and ports decide where it goes, and so it goes there again, and from another
    /// balancer as well.
    #[inline(always)]
    pub const fn is_hashed(&self) -> bool {
        self.options & (service_options::IN_TURN | service_options::LEAST) == 0
            && self.most_load == 0
    }
}

/// What else holds for a service.
pub mod service_options {
    /// A client's address alone decides, so that all its connections go to one backend.
    pub const SOURCE: u32 = 1;
    /// While no backend takes new flows, what would open one is dropped without a word.
    pub const SILENT: u32 = 2;
    /// Backends get connections in turn: the ring is the order.
    pub const IN_TURN: u32 = 4;
    /// The backend with the fewest connections gets the next one.
    pub const LEAST: u32 = 8;
}
