//! Frames, read without any of the data path's code.

use std::{net::IpAddr, ops::Range};

use anyhow::{Result, bail, ensure};

use crate::{
    frame::{Segment, pseudo_header, sum},
    world::Socket,
};

const UDP: u8 = 17;

/// How a transport checksum stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChecksumState {
    /// It is right.
    Right,
    /// It isn't.
    Wrong,
    /// UDP without one.
    Absent,
}

/// Takes the VLAN tags off a frame: EtherType and tag control information of each, the outer one first.
pub fn untag(frame: &[u8]) -> (Vec<(u16, u16)>, Vec<u8>) {
    let mut tags = Vec::new();
    let mut at = 12;
    while at + 4 <= frame.len() && [0x8100, 0x88a8].contains(&word(frame, at)) {
        tags.push((word(frame, at), word(frame, at + 2)));
        at += 4;
    }
    (tags, [&frame[..12.min(frame.len())], &frame[at.min(frame.len())..]].concat())
}

/// The same frame with at most `most` in its option for the longest segment, if it is TCP with SYN.
/// Checksums are left as they were.
pub fn clamped(frame: &[u8], most: u16) -> Vec<u8> {
    const SYN: u8 = 2;
    let mut frame = frame.to_vec();
    let layout = Layout::new(&frame[14..]);
    if layout.protocol == UDP || frame[14 + layout.transport.start + 13] & SYN == 0 {
        return frame;
    }
    if let Some(place) = option(&frame, 2, 2) {
        let value = word(&frame, place.start).min(most);
        frame[place].copy_from_slice(&value.to_be_bytes());
    }
    frame
}

/// Value and echo of a TCP segment's timestamps, if it has any, and the frame without them.
pub fn without_timestamps(frame: &[u8]) -> (Option<[u32; 2]>, Vec<u8>) {
    let mut frame = frame.to_vec();
    if Layout::new(&frame[14..]).protocol == UDP {
        return (None, frame);
    }
    let Some(place) = option(&frame, 8, 8) else { return (None, frame) };
    let half = |start: usize| u32::from_be_bytes(frame[start..start + 4].try_into().expect("four"));
    let said = [half(place.start), half(place.start + 4)];
    frame[place].fill(0);
    (Some(said), frame)
}

/// A frame's TCP header, with all that follows.
pub fn tcp(frame: &[u8]) -> &[u8] {
    &frame[14 + Layout::new(&frame[14..]).transport.start..]
}

/// Where the data of a TCP option lies, of that kind and with so many bytes.
fn option(frame: &[u8], kind: u8, bytes: usize) -> Option<Range<usize>> {
    let tcp = 14 + Layout::new(&frame[14..]).transport.start;
    let mut options = tcp + 20..tcp + usize::from(frame[tcp + 12] >> 4) * 4;
    while options.len() >= 2 {
        let length = match (frame[options.start], usize::from(frame[options.start + 1])) {
            (0, _) => return None,
            (1, _) => 1,
            (_, 0 | 1) => return None,
            (_, length) if length > options.len() => return None,
            (found, length) if found == kind && length == bytes + 2 => {
                return Some(options.start + 2..options.start + length);
            }
            (_, length) => length,
        };
        options.start += length;
    }
    None
}

/// What an independent reader sees in an untagged frame.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the headers' fields")]
pub struct Seen {
    pub destination_mac: [u8; 6],
    pub source_mac: [u8; 6],
    pub source: Socket,
    pub destination: Socket,
    pub protocol: u8,
    pub time_to_live: u8,
    pub ip_checksum_is_right: bool,
    pub transport_checksum: ChecksumState,
    /// Type of service, or traffic class.
    pub service: u8,
    /// Everything that forwarding must leave alone.
    pub rest: Vec<u8>,
}

/// Where the parts of a datagram lie that a reader looks at.
struct Layout {
    protocol: u8,
    /// Where the transport header begins, and where the datagram ends.
    transport: Range<usize>,
    time_to_live: usize,
    source: IpAddr,
    destination: IpAddr,
    /// What forwarding changes of the network header.
    changed: Vec<Range<usize>>,
}

impl Layout {
    /// Reads a datagram that holds whole headers.
    fn new(ip: &[u8]) -> Self {
        if ip[0] >> 4 == 4 {
            let header = usize::from(ip[0] & 0xf) * 4;
            return Self {
                protocol: ip[9],
                transport: header..usize::from(word(ip, 2)),
                time_to_live: 8,
                source: address(&ip[12..16]),
                destination: address(&ip[16..20]),
                changed: vec![8..9, 10..20],
            };
        }
        let (mut protocol, mut at) = (ip[6], 40);
        while [0, 43, 44, 60].contains(&protocol) {
            let length = if protocol == 44 { 8 } else { (usize::from(ip[at + 1]) + 1) * 8 };
            protocol = ip[at];
            at += length;
        }
        Self {
            protocol,
            transport: at..40 + usize::from(word(ip, 4)),
            time_to_live: 7,
            source: address(&ip[8..24]),
            destination: address(&ip[24..40]),
            changed: vec![7..8, 8..40],
        }
    }
}

impl Seen {
    /// Reads a frame that holds whole headers.
    pub fn new(frame: &[u8]) -> Self {
        const NETWORK: usize = 14;
        let ip = &frame[NETWORK..];
        let layout = Layout::new(ip);
        let transport = &ip[layout.transport.clone()];
        let mac = |at: usize| -> [u8; 6] { std::array::from_fn(|index| frame[at + index]) };
        let checksum = if layout.protocol == UDP { 6 } else { 16 };
        let begin = layout.transport.start;
        let mut changed = layout.changed;
        changed.extend([begin..begin + 4, begin + checksum..begin + checksum + 2]);
        let mut rest = frame[12..].to_vec();
        for range in changed {
            rest[range.start + 2..range.end + 2].fill(0);
        }
        // UDP's own length may leave bytes behind it.
        let covered = match layout.protocol {
            UDP => &transport[..usize::from(word(transport, 4)).min(transport.len())],
            _ => transport,
        };
        let pseudo =
            pseudo_header(layout.source, layout.destination, layout.protocol, covered.len());
        let transport_checksum = if layout.protocol == UDP && word(transport, 6) == 0 {
            ChecksumState::Absent
        } else if sum(&[&pseudo, covered]) == 0xffff {
            ChecksumState::Right
        } else {
            ChecksumState::Wrong
        };
        let is_ipv4 = layout.source.is_ipv4();
        Self {
            destination_mac: mac(0),
            source_mac: mac(6),
            source: (layout.source, word(transport, 0)),
            destination: (layout.destination, word(transport, 2)),
            protocol: layout.protocol,
            time_to_live: ip[layout.time_to_live],
            ip_checksum_is_right: ip_checksum_is_right(ip),
            transport_checksum,
            service: if is_ipv4 { ip[1] } else { (word(ip, 0) >> 4) as u8 },
            rest,
        }
    }
}

/// Demands that a frame is the reset that a TCP answers to a segment (RFC 9293, section 3.10.7.1).
///
/// # Errors
///
/// It isn't.
pub fn demand_reset(frame: &[u8], of: &Segment) -> Result<()> {
    const RST: u8 = 0x04;
    let seen = Seen::new(frame);
    ensure!(seen.source == (of.destination, of.destination_port), "{seen:?}");
    ensure!(seen.destination == (of.source, of.source_port), "{seen:?}");
    ensure!(seen.destination_mac == of.source_mac, "{seen:?}");
    ensure!(seen.ip_checksum_is_right && seen.transport_checksum == ChecksumState::Right);
    let tcp = tcp(frame);
    ensure!(tcp.len() == 20 && tcp[12..14] == [0x50, RST], "{tcp:x?}");
    ensure!(tcp[4..8] == of.acknowledgement.to_be_bytes(), "{tcp:x?}");
    Ok(())
}

/// Whether a datagram's IP header has a right checksum, or none.
pub fn ip_checksum_is_right(ip: &[u8]) -> bool {
    ip[0] >> 4 != 4 || sum(&[&ip[..usize::from(ip[0] & 0xf) * 4]]) == 0xffff
}

/// What an independent reader sees in an outer header.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the headers' fields")]
pub struct Outer {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Type of service, or traffic class.
    pub service: u8,
    /// Of IPv4.
    pub identification: Option<[u8; 2]>,
    /// The don't-fragment bit; always so with IPv6.
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
    const IPV6: u8 = 41;
    const GUE: u16 = 6080;
    let ip = &frame[14..];
    let is_ipv4 = ip[0] >> 4 == 4;
    if is_ipv4 && ip[0] != 0x45 {
        return Ok((None, frame.to_vec()));
    }
    let (protocol, header) = if is_ipv4 { (ip[9], 20) } else { (ip[6], 40) };
    let (udp_source, length) = match protocol {
        IPIP | IPV6 => (None, header),
        UDP if word(ip, header + 2) == GUE => (Some(word(ip, header)), header + 8),
        _ => return Ok((None, frame.to_vec())),
    };
    let inner = &ip[length..];
    let (inner_length, ether_type) = match inner[0] >> 4 {
        4 => (usize::from(word(inner, 2)), [0x08, 0x00]),
        6 => (usize::from(word(inner, 4)) + 40, [0x86, 0xdd]),
        _ => bail!("what is within? {inner:02x?}"),
    };
    if protocol == IPIP || protocol == IPV6 {
        ensure!((protocol == IPIP) == (inner[0] >> 4 == 4), "protocol {protocol}: {ip:02x?}");
    }
    let total = length + inner_length;
    if let Some(port) = udp_source {
        ensure!(port >= 0xc000, "outer source port {port}");
        let udp = &ip[header..];
        ensure!(usize::from(word(udp, 4)) == total - header && word(udp, 6) == 0, "UDP: {ip:02x?}");
    }
    let outer = if is_ipv4 {
        ensure!(ip[0] == 0x45 && sum(&[&ip[..20]]) == 0xffff, "outer header: {ip:02x?}");
        ensure!(usize::from(word(ip, 2)) == total, "outer length: {ip:02x?}");
        ensure!([0, 0x4000].contains(&word(ip, 6)), "outer fragment: {ip:02x?}");
        Outer {
            source: address(&ip[12..16]),
            destination: address(&ip[16..20]),
            service: ip[1],
            identification: Some([ip[4], ip[5]]),
            is_whole: word(ip, 6) == 0x4000,
            time_to_live: ip[8],
            udp_source,
        }
    } else {
        ensure!(ip[0] >> 4 == 6, "outer version: {ip:02x?}");
        ensure!(usize::from(word(ip, 4)) + 40 == total, "outer length: {ip:02x?}");
        Outer {
            source: address(&ip[8..24]),
            destination: address(&ip[24..40]),
            service: (word(ip, 0) >> 4) as u8,
            identification: None,
            is_whole: true,
            time_to_live: ip[7],
            udp_source,
        }
    };
    ensure!(frame[12..14] == if is_ipv4 { [0x08, 0x00] } else { [0x86, 0xdd] }, "EtherType");
    Ok((Some(outer), [&frame[..12], &ether_type, inner].concat()))
}

/// The address that 4 or 16 bytes are.
fn address(bytes: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(bytes) {
        Ok(bytes) => bytes.into(),
        Err(_) => <[u8; 16]>::try_from(bytes).expect("4 or 16 bytes").into(),
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
