//! ICMP messages about datagrams, built and read without any of the data path's code.

use std::net::IpAddr;

use anyhow::{Result, ensure};

use crate::frame::{Segment, pseudo_header, sum};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// A message that quotes the beginning of a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the headers' fields")]
pub struct Message {
    pub destination_mac: [u8; 6],
    pub source_mac: [u8; 6],
    pub source: IpAddr,
    pub destination: IpAddr,
    pub time_to_live: u8,
    pub kind: u8,
    pub code: u8,
    /// What follows the checksum: of "too big", the MTU in its last two bytes.
    pub rest: [u8; 4],
    pub quoted: Vec<u8>,
}

impl Message {
    /// Says that a datagram of the same family was too long.
    pub fn too_big(source: IpAddr, destination: IpAddr, mtu: u16, quoted: &[u8]) -> Self {
        let (kind, code) = if source.is_ipv4() { (3, 4) } else { (2, 0) };
        let [high, low] = mtu.to_be_bytes();
        Self {
            destination_mac: [0x02, 0, 0, 0, 0, 0x10],
            source_mac: [0x02, 0, 0, 0, 0, 0x01],
            source,
            destination,
            time_to_live: 64,
            kind,
            code,
            rest: [0, 0, high, low],
            quoted: quoted.to_vec(),
        }
    }

    /// The frame's bytes.
    pub fn build(&self) -> Vec<u8> {
        let mut message = vec![self.kind, self.code, 0, 0];
        message.extend(self.rest);
        message.extend(&self.quoted);
        let checksum = !sum(&[&self.pseudo_header(message.len()), &message]);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());

        let mut segment = Segment::syn((self.source, 0), (self.destination, 0));
        segment.destination_mac = self.destination_mac;
        segment.source_mac = self.source_mac;
        segment.time_to_live = self.time_to_live;
        segment.protocol = if self.source.is_ipv4() { ICMP } else { ICMPV6 };
        segment.around(&message)
    }

    /// Reads a frame, and demands that its checksums are right.
    ///
    /// # Errors
    ///
    /// It is no such message, or a checksum is wrong.
    pub fn read(frame: &[u8]) -> Result<Self> {
        let mac = |at: usize| -> [u8; 6] { std::array::from_fn(|index| frame[at + index]) };
        let ip = &frame[14..];
        let word = |at: usize| usize::from(u16::from_be_bytes([ip[at], ip[at + 1]]));
        let (header, protocol, total, hops) = match ip[0] >> 4 {
            4 => (20, ip[9], word(2), ip[8]),
            _ => (40, ip[6], 40 + word(4), ip[7]),
        };
        ensure!(protocol == if header == 20 { ICMP } else { ICMPV6 }, "protocol: {ip:02x?}");
        let (source, destination) = if header == 20 {
            ensure!(ip[0] == 0x45 && sum(&[&ip[..20]]) == 0xffff, "IP header: {ip:02x?}");
            (<[u8; 4]>::try_from(&ip[12..16])?.into(), <[u8; 4]>::try_from(&ip[16..20])?.into())
        } else {
            (<[u8; 16]>::try_from(&ip[8..24])?.into(), <[u8; 16]>::try_from(&ip[24..40])?.into())
        };
        ensure!(ip.len() == total, "length: {} {total}", ip.len());
        let message = &ip[header..];
        let read = Self {
            destination_mac: mac(0),
            source_mac: mac(6),
            source,
            destination,
            time_to_live: hops,
            kind: message[0],
            code: message[1],
            rest: message[4..8].try_into()?,
            quoted: message[8..].to_vec(),
        };
        let pseudo = read.pseudo_header(message.len());
        ensure!(sum(&[&pseudo, message]) == 0xffff, "ICMP checksum: {read:02x?}");
        Ok(read)
    }

    /// What the checksum covers beside the message.
    fn pseudo_header(&self, length: usize) -> Vec<u8> {
        if self.source.is_ipv4() {
            return Vec::new();
        }
        pseudo_header(self.source, self.destination, ICMPV6, length)
    }
}
