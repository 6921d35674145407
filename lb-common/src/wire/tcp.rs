//! Transmission Control Protocol (RFC 9293).

use bytemuck::{Pod, Zeroable};

use super::{Checksum, NetworkU16, NetworkU32};

/// The control bits of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct TcpFlags(u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgement number is valid.
    pub const ACK: Self = Self(0x10);

    /// None.
    pub const NONE: Self = Self(0);

    /// The set of both.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether any flag of `other` is set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Of SYN, ACK, FIN and RST exactly SYN: a connection's first segment.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & 0x17 == Self::SYN.0
    }

    /// SYN and ACK without FIN and RST: the answer to a connection's first segment.
    #[inline(always)]
    pub const fn answers(self) -> bool {
        self.0 & 0x17 == Self::SYN.0 | Self::ACK.0
    }

    /// Combinations that no TCP sends: SYN with FIN or RST, and none of SYN, ACK, FIN, RST.
    #[inline(always)]
    pub const fn is_invalid(self) -> bool {
        let flags = self.0 & 0x17;
        flags == 0 || (flags & 0x02 != 0 && flags & 0x05 != 0)
    }
}

/// The fixed part of a TCP header; options follow it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TcpHeader {
    source_port: NetworkU16,
    destination_port: NetworkU16,
    sequence: NetworkU32,
    acknowledgement: NetworkU32,
    offset_and_reserved: u8,
    flags: TcpFlags,
    window: NetworkU16,
    checksum: Checksum,
    urgent: NetworkU16,
}

impl TcpHeader {
    /// Bytes that the header takes without options.
    pub const MINIMUM_LENGTH: usize = 20;
    /// Offset of the checksum within the header, in bytes.
    pub const CHECKSUM_OFFSET: usize = 16;

    /// A reset from one port to another, with a sequence number (RFC 9293, section 3.5.2). `sum` is that
    /// of the pseudo-header.
    #[inline(always)]
    pub fn reset(
        source_port: NetworkU16,
        destination_port: NetworkU16,
        sequence: u32,
        sum: u32,
    ) -> Self {
        Self::bare((source_port, destination_port), (sequence, 0), TcpFlags::RST, sum)
    }

    /// A segment of nothing but a header from one port to another, with sequence and acknowledgement numbers.
    /// `sum` is that of the pseudo-header.
    #[inline(always)]
    pub fn bare(
        (source_port, destination_port): (NetworkU16, NetworkU16),
        (sequence, acknowledgement): (u32, u32),
        flags: TcpFlags,
        sum: u32,
    ) -> Self {
        let mut header = Self {
            source_port,
            destination_port,
            sequence: NetworkU32::new(sequence),
            acknowledgement: NetworkU32::new(acknowledgement),
            offset_and_reserved: 5 << 4,
            flags,
            window: NetworkU16::new(0),
            checksum: Checksum::NONE,
            urgent: NetworkU16::new(0),
        };
        let words: [u16; Self::MINIMUM_LENGTH / 2] = bytemuck::cast(header);
        let words: u32 = words.iter().map(|word| u32::from(*word)).sum();
        header.checksum = Checksum::from_sum(sum + words);
        header
    }

    /// The header's length in bytes as it says itself, options included; 0 to 60.
    #[inline(always)]
    pub const fn length(&self) -> usize {
        (self.offset_and_reserved >> 4) as usize * 4
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

    /// The sequence number of the first byte, or of the SYN.
    #[inline(always)]
    pub const fn sequence(&self) -> u32 {
        self.sequence.get()
    }

    /// The sequence number that the sender expects next.
    #[inline(always)]
    pub const fn acknowledgement(&self) -> u32 {
        self.acknowledgement.get()
    }

    /// The control bits.
    #[inline(always)]
    pub const fn flags(&self) -> TcpFlags {
        self.flags
    }

    /// The checksum as it stands.
    #[inline(always)]
    pub const fn checksum(&self) -> Checksum {
        self.checksum
    }
}

const _: () = assert!(size_of::<TcpHeader>() == TcpHeader::MINIMUM_LENGTH);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_sorted_into_openers_answers_and_nonsense() {
        for bits in 0..=255u8 {
            let flags = TcpFlags(bits);
            let (fin, syn, rst, ack) = (
                flags.has(TcpFlags::FIN),
                flags.has(TcpFlags::SYN),
                flags.has(TcpFlags::RST),
                flags.has(TcpFlags::ACK),
            );
            assert_eq!(flags.opens(), syn && !fin && !rst && !ack, "{bits:#x}");
            assert_eq!(flags.answers(), syn && ack && !fin && !rst, "{bits:#x}");
            let nothing = !syn && !fin && !rst && !ack;
            assert_eq!(flags.is_invalid(), nothing || (syn && (fin || rst)), "{bits:#x}");
        }
    }
}
