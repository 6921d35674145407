//! Very many flows, for the kernel's tables alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::{abi::pool_words, wire::words};

use crate::{
    frame::{Segment, flags},
    world::{BACKENDS, BACKENDS_IPV6, Socket, World, backend_address, backend_mac},
};

/// Addresses that full NAT sends from: three backends, each with so many times 64,512 ports.
const SOURCES: u32 = 6;
const PORTS: u32 = 64_512;
/// Where a client's ports begin, and how many of them it uses.
const CLIENT_PORTS: (u16, u32) = (1024, 50_000);

/// A client of those of a service's family.
pub fn client(is_ipv6: bool, number: u32) -> Socket {
    let (first, ports) = CLIENT_PORTS;
    let [_, high, middle, _] = (number / ports).to_le_bytes();
    let low = (number / ports % 256) as u8;
    let port = first + (number % ports) as u16;
    if is_ipv6 {
        let last = u16::from_be_bytes([high, low]);
        return (Ipv6Addr::new(0x2001, 0xdb8, 0x5151, 0, 0, 0, middle.into(), last).into(), port);
    }
    (IpAddr::V4(Ipv4Addr::new(198, 18 + middle, high, low)), port)
}

/// Room for so many flows, and ports for as many to the backends of the services by full NAT.
pub fn world(flows: u32) -> World {
    let mut world = World { flows: flows + flows / 20, ..World::default() };
    (world.settings.nat_port_first, world.settings.nat_port_count) = (1024, PORTS);
    let of_both = world.nat_sources.clone();
    world.nat_sources.clear();
    for (own, network) in (0..).zip(&of_both) {
        world.nat_sources.push(*network);
        for number in 1..SOURCES as u16 {
            // Frames that are repeated may differ by the ends of IPv6 addresses alone.
            let address: IpAddr = match own {
                0 => Ipv4Addr::new(10, 77, 1, number as u8).into(),
                _ => Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 1, number).into(),
            };
            world.nat_sources.push(words(address));
        }
    }
    let ports = pool_words(PORTS * SOURCES);
    let mut pool = 10_000;
    for (index, backend) in (1..).zip(&mut world.backends) {
        let family = if BACKENDS.contains(&index) {
            0
        } else if BACKENDS_IPV6.contains(&index) {
            1
        } else {
            // The others have none.
            backend.nat_sources = 0;
            continue;
        };
        (backend.nat_source, backend.nat_sources) = (family * SOURCES, SOURCES as u16);
        backend.ports = pool;
        pool += ports;
    }
    world
}

/// The segment of a flow that a client sends to a service.
pub fn segment(vip: Socket, number: u32, bits: u8) -> Segment {
    let mut segment = Segment::syn(client(vip.0.is_ipv6(), number), vip).with_flags(bits);
    segment.acknowledgement = 5001;
    segment.sequence = if bits == flags::SYN { 1000 } else { 1001 };
    segment
}

/// What a backend answers to a SYN that came from that address.
pub fn answer(backend: u32, nat: Socket) -> Segment {
    let mut answer =
        Segment::syn(backend_address(backend), nat).with_flags(flags::SYN | flags::ACK);
    answer.source_mac = backend_mac(backend);
    (answer.sequence, answer.acknowledgement) = (5000, 1001);
    answer
}
