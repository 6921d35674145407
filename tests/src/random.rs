//! Random frames that reach every branch: connections played in any order, frames with a few bytes
//! changed, and noise.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;
use lb_common::datapath::Reason;

use crate::{
    frame::{Segment, fix_ip_checksum, flags},
    host::Outcome,
    icmp::Message,
    seen::{self, Seen},
    world::{
        BOUNDED_VIP, DOUBLE_TAGS, EMPTY_VIP, LEAST_VIP, NAT_SOURCE, NAT_VIP, OTHER_FORWARDINGS,
        SILENT_VIP, Socket, TAGS, TURN_VIP, UNRESOLVED_VIP, VIP, VIP_IPV6,
    },
};

/// How many of the latest connections are played on.
const REMEMBERED: usize = 256;

/// Makes frames, by a seed.
pub struct Generator {
    random: Rng,
    peers: Vec<Peer>,
}

/// A connection that was opened at some time.
#[derive(Clone, Copy)]
struct Peer {
    client: Socket,
    vip: Socket,
    backend: Socket,
    nat: Socket,
    is_udp: bool,
}

impl Generator {
    /// Always makes the same frames from the same seed and outcomes.
    pub fn new(seed: u64) -> Self {
        Self { random: Rng::with_seed(seed), peers: Vec::new() }
    }

    /// The next frame.
    pub fn frame(&mut self) -> Vec<u8> {
        let mut frame = match self.random.u8(0..100) {
            0..25 => self.opening().build(),
            25..85 => self.continuation().build(),
            85..90 => self.error(),
            _ => return self.noise(),
        };
        if self.random.u8(0..100) < 30 {
            self.mutate(&mut frame);
        }
        frame
    }

    /// Takes in what became of a frame, to play on.
    pub fn learn(&mut self, frame: &[u8], outcome: &Outcome) {
        if outcome.reason != Reason::Opened {
            return;
        }
        let (_, after) = seen::untag(&outcome.frame);
        let Ok((_, inner)) = seen::decapsulate(&after) else { return };
        let (_, before) = seen::untag(frame);
        let (before, after) = (Seen::new(&before), Seen::new(&inner));
        let peer = Peer {
            client: before.source,
            vip: before.destination,
            backend: after.destination,
            nat: after.source,
            is_udp: after.protocol == 17,
        };
        if self.peers.len() < REMEMBERED {
            self.peers.push(peer);
        } else {
            let index = self.random.usize(0..REMEMBERED);
            self.peers[index] = peer;
        }
    }

    fn opening(&mut self) -> Segment {
        let random = &mut self.random;
        let vips = [
            VIP,
            VIP,
            VIP,
            NAT_VIP,
            EMPTY_VIP,
            SILENT_VIP,
            TURN_VIP,
            LEAST_VIP,
            BOUNDED_VIP,
            UNRESOLVED_VIP,
            (NAT_SOURCE, 22),
            VIP_IPV6,
            VIP_IPV6,
        ];
        let others = OTHER_FORWARDINGS.iter().map(|(_, vip, _)| *vip);
        let choices: Vec<_> = vips.into_iter().chain(others).collect();
        let vip = choices[random.usize(0..choices.len())];
        let host = random.u8(..);
        let address = match vip.0 {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(198, 51, 100, host)),
            IpAddr::V6(_) => {
                IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x5151, 0, 0, 0, 0, host.into()))
            }
        };
        let mut client = (address, random.u16(1024..1224));
        let (.., twin, _) = OTHER_FORWARDINGS[4];
        if vip == twin && !self.peers.is_empty() {
            // A service that shares its backend with another, by clients of that.
            client = self.peers[random.usize(0..self.peers.len())].client;
        }
        let mut segment = Segment::syn(client, vip);
        if random.u8(0..10) == 0 {
            segment.flags = random.u8(..);
        }
        if random.u8(0..4) == 0 {
            segment = Segment::udp(client, vip);
        }
        self.decorate(segment)
    }

    fn continuation(&mut self) -> Segment {
        if self.peers.is_empty() {
            return self.opening();
        }
        let random = &mut self.random;
        let peer = self.peers[random.usize(0..self.peers.len())];
        let from_client = Segment::syn(peer.client, peer.vip);
        let from_backend = Segment::syn(peer.backend, peer.nat);
        let (segment, bits) = match random.u8(0..12) {
            0..3 => (from_backend, flags::SYN | flags::ACK),
            3..6 => (from_client, flags::ACK),
            6 => (from_client, flags::ACK | flags::PSH),
            7 => (from_backend, flags::ACK | flags::PSH),
            8 => (from_client, flags::ACK | flags::FIN),
            9 => (from_backend, flags::ACK | flags::FIN),
            10 if random.bool() => (from_client, flags::RST),
            10 => (from_backend, flags::RST | flags::ACK),
            _ => (if random.bool() { from_client } else { from_backend }, random.u8(..)),
        };
        let mut segment = segment.with_flags(bits);
        if peer.is_udp {
            (segment.is_udp, segment.protocol) = (true, 17);
        }
        // A refusal has none.
        segment.sequence = if bits == flags::RST | flags::ACK { 0 } else { 5000 };
        segment.acknowledgement = if random.u8(0..8) == 0 { random.u32(..) } else { 5001 };
        self.decorate(segment)
    }

    /// An ICMP message about a datagram of one of the latest connections, from either side.
    fn error(&mut self) -> Vec<u8> {
        if self.peers.is_empty() {
            return self.noise();
        }
        let random = &mut self.random;
        let peer = self.peers[random.usize(0..self.peers.len())];
        let (from, to) =
            if random.bool() { (peer.nat, peer.backend) } else { (peer.vip, peer.client) };
        let mut about = Segment::syn(from, to);
        (about.is_udp, about.protocol) = if peer.is_udp { (true, 17) } else { (false, 6) };
        let about = self.decorate(about).build();
        let random = &mut self.random;
        let (_, about) = seen::untag(&about);
        let quoted = &about[14.min(about.len())..];
        let length = random.usize(0..=quoted.len().min(600));
        let router = if random.bool() { to.0 } else { peer.backend.0 };
        let router = if router.is_ipv4() == from.0.is_ipv4() { router } else { to.0 };
        let mut message = Message::too_big(router, from.0, random.u16(..), &quoted[..length]);
        match random.u8(0..8) {
            0 => message.kind = random.u8(0..16),
            1 => message.time_to_live = random.u8(..),
            2 => message.destination_mac[5] = random.u8(..),
            3 => message.rest = random.u32(..).to_be_bytes(),
            _ => {}
        }
        message.build()
    }

    /// Options, payloads, hops and hardware addresses of all sorts.
    fn decorate(&mut self, mut segment: Segment) -> Segment {
        let random = &mut self.random;
        let bytes = |random: &mut Rng, count: usize| -> Vec<u8> {
            (0..count).map(|_| random.u8(..)).collect()
        };
        if random.u8(0..8) == 0 {
            let words = random.usize(0..=10);
            segment.ip_options = bytes(random, words * 4);
        }
        if random.u8(0..8) == 0 && segment.source.is_ipv6() {
            for _ in 0..random.usize(1..=6) {
                let kind = [0, 60, 43, 44, 50][random.usize(0..5)];
                let words = if kind == 44 { 1 } else { random.usize(1..=4) };
                let mut header = bytes(random, words * 8);
                if random.u8(0..4) != 0 {
                    // Its length; no stations to pass, and the first fragment.
                    header[1..4].copy_from_slice(&[words as u8 - 1, 0, 0]);
                }
                segment.extensions.push((kind, header));
            }
        }
        if random.bool() {
            let words = random.usize(0..=10);
            segment.tcp_options = bytes(random, words * 4);
        }
        if segment.flags & flags::SYN == 0 || random.bool() {
            let stamps: [u8; 8] = std::array::from_fn(|_| random.u8(..));
            let lead = [vec![1; random.usize(0..4)], vec![8, 10], stamps.to_vec()].concat();
            if random.u8(0..3) != 0 {
                segment.tcp_options.splice(0..0, lead);
                segment.tcp_options.truncate(40);
                segment.tcp_options.resize(segment.tcp_options.len().next_multiple_of(4), 0);
            }
        }
        let last = match segment.source {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        segment.tags = match last % 4 {
            0 => TAGS.map(|(kind, number)| (kind, number | (u16::from(last) << 13))).to_vec(),
            1 => DOUBLE_TAGS.to_vec(),
            _ => Vec::new(),
        };
        if segment.flags & flags::SYN != 0 && random.bool() {
            let most = random.u16(500..1500).to_be_bytes();
            let option = [vec![1; random.usize(0..4)], vec![2, 4, most[0], most[1]]].concat();
            segment.tcp_options.splice(0..0, option);
            segment.tcp_options.truncate(40);
            segment.tcp_options.resize(segment.tcp_options.len().next_multiple_of(4), 0);
        }
        let longest = if random.u8(0..16) == 0 { 1500 } else { 40 };
        let length = random.usize(0..=longest);
        segment.payload = bytes(random, length);
        if random.u8(0..12) == 0 {
            self.divide(&mut segment);
        }
        let random = &mut self.random;
        match random.u8(0..64) {
            0 => segment.time_to_live = random.u8(0..3),
            1 => segment.fragment = random.u16(..),
            2 => segment.source_mac[5] = random.u8(..),
            3 => segment.destination_mac[5] = random.u8(..),
            4 => segment.ip_checksum_error = random.u16(..),
            5 => segment.transport_checksum_error = random.u16(..),
            6 => segment.length_error = random.i16(..),
            7 => segment.header_length_error = random.i8(-5..=10),
            8 => segment.data_offset_error = random.i8(-5..=10),
            9 => segment.trailer = bytes(random, length),
            10 => segment.tags = vec![(0x8100, random.u16(..))],
            15 => segment.tags = vec![(0x8100, random.u16(..)); random.usize(0..4)],
            16 => segment.tags = DOUBLE_TAGS.to_vec(),
            11 if segment.source.is_ipv4() => {
                segment.source = Ipv4Addr::from(random.u32(..)).into();
            }
            11 => segment.source = Ipv6Addr::from(random.u128(..)).into(),
            12 => segment.lacks_checksum = true,
            13 => segment.udp_length_error = random.i16(-20..20),
            14 => segment.service = random.u8(..),
            _ => {}
        }
        segment
    }

    /// Makes a fragment of a datagram, the first or a later one, of which there are many with the same
    /// identification.
    fn divide(&mut self, segment: &mut Segment) {
        let random = &mut self.random;
        segment.identification = random.u16(0..8);
        let offset = if random.bool() { 0 } else { random.u16(0..4) };
        let more = if random.u8(0..4) == 0 { 0 } else { 1 };
        segment.fragment = (more << 13) | offset;
        if segment.source.is_ipv6() {
            let [high, low] = ((offset << 3) | more).to_be_bytes();
            let last = segment.identification as u8;
            segment.extensions.push((44, vec![0, 0, high, low, 0, 0, 0, last]));
        }
    }

    fn mutate(&mut self, frame: &mut Vec<u8>) {
        let random = &mut self.random;
        match random.u8(0..4) {
            0 => frame.truncate(random.usize(0..=frame.len())),
            1 => frame.extend((0..random.usize(0..64)).map(|_| 0)),
            _ => {
                for _ in 0..random.usize(1..4) {
                    let reach = frame.len().min(80);
                    frame[random.usize(0..reach)] = random.u8(..);
                }
            }
        }
        if random.bool() {
            fix_ip_checksum(frame);
        }
    }

    fn noise(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let longest = if random.u8(0..16) == 0 { 3000 } else { 100 };
        let mut frame: Vec<u8> = (0..random.usize(0..longest)).map(|_| random.u8(..)).collect();
        if random.bool() && frame.len() > 34 {
            if random.bool() {
                frame[12..15].copy_from_slice(&[8, 0, 0x45]);
                frame[23] = 6;
                fix_ip_checksum(&mut frame);
            } else {
                frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
                frame[20] = 17;
            }
        }
        frame
    }
}
