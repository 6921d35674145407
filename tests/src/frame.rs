//! Frames, built and read without any of the data path's code.

use std::net::Ipv4Addr;

use anyhow::{Result, bail, ensure};

/// TCP flag bits.
pub mod flags {
    #![expect(missing_docs, reason = "the names of RFC 9293")]
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
}

/// A TCP segment in IPv4 in Ethernet, with every field that a test may want to get wrong.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names of the headers' fields")]
pub struct Tcp {
    pub destination_mac: [u8; 6],
    pub source_mac: [u8; 6],
    /// 802.1Q or 802.1ad tags: EtherType and tag control information.
    pub tags: Vec<(u16, u16)>,
    pub version: u8,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub source_port: u16,
    pub destination_port: u16,
    pub time_to_live: u8,
    pub service: u8,
    /// Flags and offset of the IP header's fragment field.
    pub fragment: u16,
    /// A multiple of four bytes, at most 40.
    pub ip_options: Vec<u8>,
    /// Added to the right header length, in words.
    pub header_length_error: i8,
    /// Added to the right datagram length, in bytes.
    pub length_error: i16,
    /// Added to the right checksums.
    pub ip_checksum_error: u16,
    pub tcp_checksum_error: u16,
    pub protocol: u8,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub flags: u8,
    /// A multiple of four bytes, at most 40.
    pub tcp_options: Vec<u8>,
    /// Added to the right data offset, in words.
    pub data_offset_error: i8,
    pub payload: Vec<u8>,
    /// Bytes behind the datagram, such as Ethernet's padding.
    pub trailer: Vec<u8>,
}

impl Tcp {
    /// A SYN.
    pub fn syn(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Self {
        Self {
            destination_mac: [0x02, 0, 0, 0, 0, 0x10],
            source_mac: [0x02, 0, 0, 0, 0, 0x01],
            tags: Vec::new(),
            version: 4,
            source: source.0,
            destination: destination.0,
            source_port: source.1,
            destination_port: destination.1,
            time_to_live: 64,
            service: 0,
            fragment: 0x4000,
            ip_options: Vec::new(),
            header_length_error: 0,
            length_error: 0,
            ip_checksum_error: 0,
            tcp_checksum_error: 0,
            protocol: 6,
            sequence: 1000,
            acknowledgement: 0,
            flags: flags::SYN,
            tcp_options: Vec::new(),
            data_offset_error: 0,
            payload: Vec::new(),
            trailer: Vec::new(),
        }
    }

    /// The same with other flags.
    #[must_use]
    pub fn with_flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// The frame's bytes.
    pub fn build(&self) -> Vec<u8> {
        let header = 20 + self.ip_options.len();
        let segment = 20 + self.tcp_options.len() + self.payload.len();

        let mut tcp = Vec::new();
        tcp.extend(self.source_port.to_be_bytes());
        tcp.extend(self.destination_port.to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledgement.to_be_bytes());
        let words = (20 + self.tcp_options.len()) / 4;
        tcp.push((add(words, self.data_offset_error) & 0xf) << 4);
        tcp.push(self.flags);
        tcp.extend([0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(&self.tcp_options);
        tcp.extend(&self.payload);
        let checksum = !sum(&[&pseudo_header(self.source, self.destination, segment), &tcp]);
        put(&mut tcp, 16, checksum.wrapping_add(self.tcp_checksum_error));

        let mut ip = Vec::new();
        ip.push((self.version << 4) | (add(header / 4, self.header_length_error) & 0xf));
        ip.push(self.service);
        let total = (header + segment) as u16;
        ip.extend(total.wrapping_add_signed(self.length_error).to_be_bytes());
        ip.extend([0x12, 0x34]);
        ip.extend(self.fragment.to_be_bytes());
        ip.extend([self.time_to_live, self.protocol, 0, 0]);
        ip.extend(self.source.octets());
        ip.extend(self.destination.octets());
        ip.extend(&self.ip_options);
        let checksum = !sum(&[&ip]);
        put(&mut ip, 10, checksum.wrapping_add(self.ip_checksum_error));

        let mut frame = Vec::new();
        frame.extend(self.destination_mac);
        frame.extend(self.source_mac);
        for (ether_type, control) in &self.tags {
            frame.extend(ether_type.to_be_bytes());
            frame.extend(control.to_be_bytes());
        }
        frame.extend([0x08, 0x00]);
        frame.extend(ip);
        frame.extend(tcp);
        frame.extend(&self.trailer);
        frame
    }
}

/// What an independent reader sees in an untagged frame with a TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the headers' fields")]
pub struct Seen {
    pub destination_mac: [u8; 6],
    pub source_mac: [u8; 6],
    pub source: (Ipv4Addr, u16),
    pub destination: (Ipv4Addr, u16),
    pub time_to_live: u8,
    pub ip_checksum_is_right: bool,
    pub tcp_checksum_is_right: bool,
    /// Everything that forwarding must leave alone.
    pub rest: Vec<u8>,
}

impl Seen {
    /// Reads a frame that holds whole headers.
    pub fn new(frame: &[u8]) -> Self {
        let ip = &frame[14..];
        let header = usize::from(ip[0] & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        let tcp = &ip[header..total];
        let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
        let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
        let mac = |at: usize| -> [u8; 6] { std::array::from_fn(|index| frame[at + index]) };

        let mut rest = frame[12..].to_vec();
        // Time to live, IP checksum and addresses; ports and TCP checksum.
        for range in
            [8 + 2..9 + 2, 10 + 2..20 + 2, header + 2..header + 6, header + 18..header + 20]
        {
            rest[range].fill(0);
        }
        Self {
            destination_mac: mac(0),
            source_mac: mac(6),
            source: (address(12), port(0)),
            destination: (address(16), port(2)),
            time_to_live: ip[8],
            ip_checksum_is_right: sum(&[&ip[..header]]) == 0xffff,
            tcp_checksum_is_right: sum(&[&pseudo_header(address(12), address(16), tcp.len()), tcp])
                == 0xffff,
            rest,
        }
    }
}

/// What an independent reader sees in an outer header.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the headers' fields")]
pub struct Outer {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub service: u8,
    pub identification: [u8; 2],
    /// The don't-fragment bit.
    pub is_whole: bool,
    pub time_to_live: u8,
    /// Source port of Generic UDP Encapsulation.
    pub udp_source: Option<u16>,
}

/// Takes the outer header off a frame, if it has one.
///
/// # Errors
///
/// The outer header isn't right.
pub fn decapsulate(frame: &[u8]) -> Result<(Option<Outer>, Vec<u8>)> {
    const IPIP: u8 = 4;
    const UDP: u8 = 17;
    const GUE: u16 = 6080;
    let ip = &frame[14..];
    let word = |at: usize| u16::from_be_bytes([ip[at], ip[at + 1]]);
    let (udp_source, outer) = match ip[9] {
        IPIP => (None, 20),
        UDP if word(22) == GUE => (Some(word(20)), 28),
        _ => return Ok((None, frame.to_vec())),
    };
    ensure!(ip[0] == 0x45 && sum(&[&ip[..20]]) == 0xffff, "outer header: {ip:02x?}");
    let inner = &ip[outer..];
    let length = outer + usize::from(u16::from_be_bytes([inner[2], inner[3]]));
    ensure!(usize::from(word(2)) == length, "outer length: {ip:02x?}");
    if udp_source.is_some() {
        ensure!(usize::from(word(24)) == length - 20 && word(26) == 0, "UDP: {ip:02x?}");
    }
    let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
    let outer = Outer {
        source: address(12),
        destination: address(16),
        service: ip[1],
        identification: [ip[4], ip[5]],
        is_whole: match word(6) {
            0 => false,
            0x4000 => true,
            _ => bail!("outer fragment: {ip:02x?}"),
        },
        time_to_live: ip[8],
        udp_source,
    };
    Ok((Some(outer), [&frame[..14], inner].concat()))
}

/// Makes the IP checksum of a frame right, if it holds a header.
pub fn fix_ip_checksum(frame: &mut [u8]) {
    let Some(length) = frame.get(14).map(|byte| usize::from(byte & 0xf) * 4) else { return };
    if length < 20 || frame.len() < 14 + length {
        return;
    }
    frame[24..26].fill(0);
    let checksum = !sum(&[&frame[14..14 + length]]);
    put(frame, 24, checksum);
}

fn pseudo_header(source: Ipv4Addr, destination: Ipv4Addr, segment: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(source.octets());
    bytes.extend(destination.octets());
    bytes.extend([0, 6]);
    bytes.extend((segment as u16).to_be_bytes());
    bytes
}

/// One's-complement sum over big-endian words, each part padded on its own.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for word in part.chunks(2) {
            sum += u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn add(words: usize, error: i8) -> u8 {
    (words as u8).wrapping_add_signed(error)
}
