//! What is known of clients' addresses: who may connect, how often, and whom they keep to.

use bytemuck::{Pod, Zeroable};

use super::{Tick, word::word};
use crate::wire::Address;

/// What a list of networks is asked: an address, by a service's list. A network has as many bits less
/// as its prefix is shorter than an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Zeroable)]
#[repr(C)]
pub struct AccessKey<A> {
    /// Number of the list, [`super::Service::access`].
    pub list: u32,
    /// The client's address, or the network's.
    pub address: A,
}

// SAFETY: repr(C) of an integer and an address (4 or 16 bytes, aligned to 4) without padding; the sizes
// are asserted in the parent module.
unsafe impl<A: Address> Pod for AccessKey<A> {}

word! {
    /// What a list says of a network. The longest prefix that an address lies in decides.
    Access {
        /// Its clients may not connect.
        Denied = 0 "deny",
        /// They may.
        Allowed = 1 "allow",
    }
}

/// A client's address at a service with affinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Zeroable)]
#[repr(C)]
pub struct ClientKey<A> {
    /// Index of the service.
    pub service: u32,
    /// The client's address.
    pub address: A,
}

// SAFETY: as of [`AccessKey`].
unsafe impl<A: Address> Pod for ClientKey<A> {}

/// The backend that a client keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Client {
    /// Index of the backend.
    pub backend: u32,
    /// When it was last known to have a connection.
    pub last_seen: Tick,
}
