//! User Datagram Protocol (RFC 768).

use bytemuck::{Pod, Zeroable};

use super::NetworkU16;

/// A UDP header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct UdpHeader {
    source_port: NetworkU16,
    destination_port: NetworkU16,
    length: NetworkU16,
    checksum: u16,
}

impl UdpHeader {
    /// Bytes that the header takes.
    pub const LENGTH: usize = 8;

    /// A header without a checksum, as IPv4 allows. `length` in bytes includes the header.
    #[inline(always)]
    pub const fn new(source_port: NetworkU16, destination_port: NetworkU16, length: u16) -> Self {
        Self { source_port, destination_port, length: NetworkU16::new(length), checksum: 0 }
    }
}

const _: () = assert!(size_of::<UdpHeader>() == UdpHeader::LENGTH);
