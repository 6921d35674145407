//! What the XDP program and the controller share.
//!
//! * [`abi`]: what lives in BPF maps, with its layout pinned at compile time.
//! * [`wire`]: protocol headers as they stand in a frame.
//! * [`datapath`]: the packet logic, generic over [`datapath::Packet`] and [`datapath::Tables`], so
//!   that the same lines run in the kernel and in tests on the host.

#![no_std]
#![warn(clippy::wildcard_enum_match_arm)]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod datapath;
pub mod wire;
