//! User Datagram Protocol (RFC 768).

use bytemuck::{Pod, Zeroable};

use super::{Checksum, NetworkU16};

/// A UDP header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct UdpHeader {
    source_port: NetworkU16,
    destination_port: NetworkU16,
    length: NetworkU16,
    checksum: Checksum,
}

impl UdpHeader {
    /// Bytes that the header takes.
    pub const LENGTH: usize = 8;

    /// Offset of the checksum within the header, in bytes.
    pub const CHECKSUM_OFFSET: usize = 6;

    /// A header without a checksum, as IPv4 allows, and IPv6 for tunnels (RFC 6935). `length` in bytes includes the header.
    #[inline(always)]
    pub const fn new(source_port: NetworkU16, destination_port: NetworkU16, length: u16) -> Self {
        Self {
            source_port,
            destination_port,
            length: NetworkU16::new(length),
            checksum: Checksum::NONE,
        }
    }

    /// The sender's port.
    #[inline(always)]
    pub const fn source_port(&self) -> NetworkU16 {
        self.source_port
    }

    /// The receiver's port.
    #[inline(always)]
    pub const fn destination_port(&self) -> NetworkU16 {
        self.destination_port
    }

    /// The checksum as it stands.
    #[inline(always)]
    pub const fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// The length that the header says, in bytes, with the header.
    #[inline(always)]
    pub const fn length(&self) -> usize {
        self.length.get() as usize
    }
}

const _: () = assert!(size_of::<UdpHeader>() == UdpHeader::LENGTH);
