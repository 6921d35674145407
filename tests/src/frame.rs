//! Frames, built without any of the data path's code.

use std::net::{IpAddr, Ipv4Addr};

use crate::world::Socket;

/// TCP flag bits.
pub mod flags {
    #![expect(missing_docs, reason = "the names of RFC 9293")]
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
}

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A TCP segment or a UDP datagram in IPv4 or IPv6 in Ethernet, with every field that a test may
/// want to get wrong. What only the other protocol or family has is left out.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names of the headers' fields")]
pub struct Segment {
    pub destination_mac: [u8; 6],
    pub source_mac: [u8; 6],
    /// 802.1Q or 802.1ad tags: EtherType and tag control information.
    pub tags: Vec<(u16, u16)>,
    pub version: u8,
    /// The family of the datagram is this address's.
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub destination_port: u16,
    /// Time to live, or hop limit.
    pub time_to_live: u8,
    /// Type of service, or traffic class.
    pub service: u8,
    /// Identification of IPv4.
    pub identification: u16,
    /// Flags and offset of IPv4's fragment field.
    pub fragment: u16,
    /// IPv4: a multiple of four bytes, at most 40.
    pub ip_options: Vec<u8>,
    /// IPv6: headers by protocol number and bytes; the first byte is set to what follows.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// Added to the right header length of IPv4, in words.
    pub header_length_error: i8,
    /// Added to the right datagram length, in bytes.
    pub length_error: i16,
    /// Added to the right checksums.
    pub ip_checksum_error: u16,
    pub transport_checksum_error: u16,
    /// The protocol number as it stands in the header.
    pub protocol: u8,
    /// Whether it is UDP.
    pub is_udp: bool,
    /// UDP: zero stands for the checksum.
    pub lacks_checksum: bool,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub flags: u8,
    /// A multiple of four bytes, at most 40.
    pub tcp_options: Vec<u8>,
    /// Added to the right data offset, in words.
    pub data_offset_error: i8,
    /// Added to the right length in UDP's header, in bytes.
    pub udp_length_error: i16,
    pub payload: Vec<u8>,
    /// Bytes behind the datagram, such as Ethernet's padding.
    pub trailer: Vec<u8>,
}

impl Segment {
    /// A SYN.
    pub fn syn(source: Socket, destination: Socket) -> Self {
        Self {
            destination_mac: [0x02, 0, 0, 0, 0, 0x10],
            source_mac: [0x02, 0, 0, 0, 0, 0x01],
            tags: Vec::new(),
            version: if source.0.is_ipv4() { 4 } else { 6 },
            source: source.0,
            destination: destination.0,
            source_port: source.1,
            destination_port: destination.1,
            time_to_live: 64,
            service: 0,
            identification: 0x1234,
            fragment: 0x4000,
            ip_options: Vec::new(),
            extensions: Vec::new(),
            header_length_error: 0,
            length_error: 0,
            ip_checksum_error: 0,
            transport_checksum_error: 0,
            protocol: TCP,
            is_udp: false,
            lacks_checksum: false,
            sequence: 1000,
            acknowledgement: 0,
            flags: flags::SYN,
            tcp_options: Vec::new(),
            data_offset_error: 0,
            udp_length_error: 0,
            payload: Vec::new(),
            trailer: Vec::new(),
        }
    }

    /// A UDP datagram.
    pub fn udp(source: Socket, destination: Socket) -> Self {
        Self {
            protocol: UDP,
            is_udp: true,
            payload: b"a question".to_vec(),
            ..Self::syn(source, destination)
        }
    }

    /// The frames of its parts, each with at most `most` bytes of the datagram's payload, a multiple of
    /// eight.
    pub fn fragments(&self, most: usize) -> Vec<Vec<u8>> {
        let transport = if self.is_udp { self.udp_bytes() } else { self.tcp_bytes() };
        let last = (transport.len() - 1) / most;
        let part = |(index, bytes): (usize, &[u8])| {
            let mut part = self.clone();
            let (eighths, more) = ((index * most / 8) as u16, u16::from(index < last));
            part.fragment = (more << 13) | eighths;
            if self.source.is_ipv6() {
                let [high, low] = ((eighths << 3) | more).to_be_bytes();
                let [first, second] = self.identification.to_be_bytes();
                part.extensions.push((44, vec![0, 0, high, low, 0xfa, 0xce, first, second]));
            }
            part.around(bytes)
        };
        transport.chunks(most).enumerate().map(part).collect()
    }

    /// The same with other flags.
    #[must_use]
    pub fn with_flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// The frame's bytes.
    pub fn build(&self) -> Vec<u8> {
        self.around(&if self.is_udp { self.udp_bytes() } else { self.tcp_bytes() })
    }

    /// The frame's bytes with another payload of IP than the segment.
    pub(crate) fn around(&self, transport: &[u8]) -> Vec<u8> {
        let (ether_type, network) = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                (0x0800, self.ipv4_bytes(source, destination, transport.len()))
            }
            _ => (0x86dd, self.ipv6_bytes(transport.len())),
        };
        let mut frame = Vec::new();
        frame.extend(self.destination_mac);
        frame.extend(self.source_mac);
        for (ether_type, control) in &self.tags {
            frame.extend(ether_type.to_be_bytes());
            frame.extend(control.to_be_bytes());
        }
        frame.extend(u16::to_be_bytes(ether_type));
        frame.extend(network);
        frame.extend(transport);
        frame.extend(&self.trailer);
        frame
    }

    fn tcp_bytes(&self) -> Vec<u8> {
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
        let checksum = !sum(&[&pseudo_header(self.source, self.destination, TCP, tcp.len()), &tcp]);
        put(&mut tcp, 16, checksum.wrapping_add(self.transport_checksum_error));
        tcp
    }

    fn udp_bytes(&self) -> Vec<u8> {
        let mut udp = Vec::new();
        udp.extend(self.source_port.to_be_bytes());
        udp.extend(self.destination_port.to_be_bytes());
        let length = (8 + self.payload.len()) as u16;
        udp.extend(length.wrapping_add_signed(self.udp_length_error).to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(&self.payload);
        if !self.lacks_checksum {
            let pseudo = pseudo_header(self.source, self.destination, UDP, udp.len());
            let checksum = match !sum(&[&pseudo, &udp]) {
                0 => 0xffff,
                checksum => checksum,
            };
            put(&mut udp, 6, checksum.wrapping_add(self.transport_checksum_error));
        }
        udp
    }

    fn ipv4_bytes(&self, source: Ipv4Addr, destination: Ipv4Addr, transport: usize) -> Vec<u8> {
        let header = 20 + self.ip_options.len();
        let mut ip = Vec::new();
        ip.push((self.version << 4) | (add(header / 4, self.header_length_error) & 0xf));
        ip.push(self.service);
        let total = (header + transport) as u16;
        ip.extend(total.wrapping_add_signed(self.length_error).to_be_bytes());
        ip.extend(self.identification.to_be_bytes());
        ip.extend(self.fragment.to_be_bytes());
        ip.extend([self.time_to_live, self.protocol, 0, 0]);
        ip.extend(source.octets());
        ip.extend(destination.octets());
        ip.extend(&self.ip_options);
        let checksum = !sum(&[&ip]);
        put(&mut ip, 10, checksum.wrapping_add(self.ip_checksum_error));
        ip
    }

    fn ipv6_bytes(&self, transport: usize) -> Vec<u8> {
        let mut extensions = Vec::new();
        for (index, (_, bytes)) in self.extensions.iter().enumerate() {
            let next = self.extensions.get(index + 1).map_or(self.protocol, |(kind, _)| *kind);
            extensions.push(next);
            extensions.extend(&bytes[1..]);
        }
        let first = self.extensions.first().map_or(self.protocol, |(kind, _)| *kind);
        let mut ip = Vec::new();
        let (class, label) = (u32::from(self.service), 0x12345);
        ip.extend(((u32::from(self.version) << 28) | (class << 20) | label).to_be_bytes());
        let length = (extensions.len() + transport) as u16;
        ip.extend(length.wrapping_add_signed(self.length_error).to_be_bytes());
        ip.extend([first, self.time_to_live]);
        ip.extend(octets(self.source));
        ip.extend(octets(self.destination));
        ip.extend(extensions);
        ip
    }
}

/// Makes the IP checksum of a frame right, if it holds an IPv4 header.
pub fn fix_ip_checksum(frame: &mut [u8]) {
    let Some(length) = frame.get(14).map(|byte| usize::from(byte & 0xf) * 4) else { return };
    if length < 20 || frame.len() < 14 + length || frame[14] >> 4 != 4 {
        return;
    }
    frame[24..26].fill(0);
    let checksum = !sum(&[&frame[14..14 + length]]);
    put(frame, 24, checksum);
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The bytes that a transport checksum covers beside the segment: in the one's-complement sum, those
/// of IPv4 and IPv6 come to the same but for the addresses.
pub(crate) fn pseudo_header(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    length: usize,
) -> Vec<u8> {
    let mut bytes = octets(source);
    bytes.extend(octets(destination));
    bytes.extend([0, protocol]);
    bytes.extend((length as u16).to_be_bytes());
    bytes
}

/// One's-complement sum over big-endian words, each part padded on its own.
pub(crate) fn sum(parts: &[&[u8]]) -> u16 {
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
