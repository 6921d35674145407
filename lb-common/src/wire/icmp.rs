//! Internet Control Message Protocol (RFC 792) and that of IPv6 (RFC 4443).

use bytemuck::{Pod, Zeroable};

use super::{Checksum, ChecksumDelta, NetworkU16};

/// The header of a message. Behind that of an error follows the beginning of the datagram that it is
/// about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct IcmpHeader {
    kind: u8,
    code: u8,
    checksum: Checksum,
    /// Of the messages "too big": the upper half of the MTU, which only IPv6 uses.
    reserved: NetworkU16,
    /// Of those: the MTU.
    mtu: NetworkU16,
}

impl IcmpHeader {
    /// Bytes that the header takes.
    pub const LENGTH: usize = 8;
    /// Offset of the checksum within the header, in bytes.
    pub const CHECKSUM_OFFSET: usize = 2;

    /// "Fragmentation needed and DF set" (RFC 1191), without a checksum.
    #[inline(always)]
    pub const fn fragmentation_needed(mtu: u16) -> Self {
        Self::about_mtu(3, 4, mtu)
    }

    /// "Packet too big" of IPv6 (RFC 4443, section 3.2), without a checksum.
    #[inline(always)]
    pub const fn packet_too_big(mtu: u16) -> Self {
        Self::about_mtu(2, 0, mtu)
    }

    #[inline(always)]
    const fn about_mtu(kind: u8, code: u8, mtu: u16) -> Self {
        Self {
            kind,
            code,
            checksum: Checksum::NONE,
            reserved: NetworkU16::new(0),
            mtu: NetworkU16::new(mtu),
        }
    }

    /// The type of the message.
    #[inline(always)]
    pub const fn kind(&self) -> u8 {
        self.kind
    }

    /// Which message of its type it is.
    #[inline(always)]
    pub const fn code(&self) -> u8 {
        self.code
    }

    /// The same header with the checksum over it and what `sum` is of: the words of whatever else the
    /// checksum covers.
    #[inline(always)]
    pub fn with_checksum(mut self, sum: u32) -> Self {
        let words: [u16; 4] = bytemuck::cast(self);
        let mut total = sum;
        for word in words {
            total += u32::from(word);
        }
        self.checksum = Checksum::from_sum(total);
        self
    }

    /// The checksum after a change of what it covers.
    #[inline(always)]
    pub const fn updated_checksum(&self, delta: ChecksumDelta) -> Checksum {
        self.checksum.updated(delta)
    }
}

const _: () = assert!(size_of::<IcmpHeader>() == IcmpHeader::LENGTH);
