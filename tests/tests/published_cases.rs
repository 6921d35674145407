//! What the published packet tests of other balancers describe: Katran's of its encapsulating program,
//! and GLB director's of Generic UDP Encapsulation. Each goes through the host's build and the loaded
//! program; where they drop what can be forwarded, it is forwarded here.

use anyhow::{Result, ensure};
use lb_common::{abi::Forwarding, datapath::Reason};
use lb_tests::{
    frame::{Segment, flags},
    icmp::Message,
    pair::Pair,
    seen,
    world::{OTHER_FORWARDINGS, Socket, World, backend_address, backend_mac, client_of},
};

const PAYLOAD: &[u8] = b"a packet of a test";

/// A service by its forwarding and by whether it and its backend are on IPv4, with that backend.
fn service(wanted: Forwarding, outside: bool, inside: bool) -> (Socket, u32) {
    let is_it = |(forwarding, vip, backend): &(Forwarding, Socket, u32)| {
        let backend = backend_address(*backend);
        *forwarding == wanted && vip.0.is_ipv4() == outside && backend.0.is_ipv4() == inside
    };
    let found = OTHER_FORWARDINGS.into_iter().find(is_it);
    found.map(|(_, vip, backend)| (vip, backend)).expect("a service")
}

fn segment(vip: Socket, flags: u8) -> Segment {
    let mut segment = Segment::syn(client_of(vip.0), vip).with_flags(flags);
    segment.payload = PAYLOAD.to_vec();
    segment
}

fn datagram(vip: Socket, payload: &[u8]) -> Segment {
    let mut datagram = Segment::udp(client_of(vip.0), vip);
    datagram.payload = payload.to_vec();
    datagram
}

/// Demands that a frame goes to the backend whole, within an outer header of the backend's family.
fn reaches(pair: &mut Pair, what: &str, frame: &[u8], reason: Reason, backend: u32) -> Result<()> {
    let outcome = pair.expect(what, frame, reason)?;
    ensure!(outcome.frame[..6] == backend_mac(backend), "{what}: {:02x?}", outcome.frame);
    let (outer, inner) = seen::decapsulate(&outcome.frame)?;
    let address = backend_address(backend).0;
    ensure!(outer.is_some_and(|outer| outer.destination == address), "{what}: {inner:02x?}");
    ensure!(inner.len() == frame.len(), "{what}: {inner:02x?}");
    Ok(())
}

#[test]
fn tcp_and_udp_from_and_to_both_families_are_encapsulated() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for forwarding in [Forwarding::Ipip, Forwarding::Gue] {
        for [outside, inside] in [[true, true], [true, false], [false, false], [false, true]] {
            pair.reset()?;
            let (vip, backend) = service(forwarding, outside, inside);
            let what = format!("{} {vip:?}", forwarding.name());
            let mut go = |what: &str, frame: &[u8], reason| {
                reaches(&mut pair, &format!("{what}, {}", vip.1), frame, reason, backend)
            };
            let ack = segment(vip, flags::ACK);
            go("an ACK of a connection that isn't known", &ack.build(), Reason::Adopted)?;
            go("the same again", &ack.build(), Reason::ToBackend)?;
            let mut marked = ack.clone();
            marked.service = 0x8c;
            go("with a type of service", &marked.build(), Reason::ToBackend)?;
            go(&what, &datagram(vip, PAYLOAD).build(), Reason::Opened)?;
            for (name, bits) in [("PSH", flags::PSH), ("FIN", flags::FIN), ("RST", flags::RST)] {
                go(name, &segment(vip, flags::ACK | bits).build(), Reason::ToBackend)?;
            }
            pair.compare_tables()?;
        }
    }
    Ok(())
}

#[test]
fn datagrams_of_a_quic_connection_stay_on_one_backend() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for (outside, inside) in [(true, true), (true, false), (false, false)] {
        pair.reset()?;
        let (vip, backend) = service(Forwarding::Ipip, outside, inside);
        // Long headers, from Initial to Retry, and short ones with and without a connection's number.
        let first = datagram(vip, &[0xcf, 0xfa, 0xce, 0xb0, 1, 8, 0x41, 2, 3, 4, 5, 6, 7]);
        reaches(&mut pair, "Initial", &first.build(), Reason::Opened, backend)?;
        for begin in [0xdf, 0xef, 0xff, 0x00, 0x40] {
            let next = datagram(vip, &[begin, 0x41, 0, 0x83, 4, 5, 6, 7, 0]);
            reaches(&mut pair, "the next", &next.build(), Reason::ToBackend, backend)?;
        }
        pair.compare_tables()?;
    }
    Ok(())
}

#[test]
fn icmp_errors_go_to_the_backend_and_echoes_to_the_host() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for is_ipv4 in [true, false] {
        pair.reset()?;
        let (vip, backend) = service(Forwarding::Ipip, is_ipv4, is_ipv4);
        let client = client_of(vip.0);
        let router = if is_ipv4 { "192.0.2.99" } else { "2001:db8:99::99" };
        let about = Segment::syn(vip, client).build();
        let too_big = Message::too_big(router.parse()?, vip.0, 1280, &about[14..]);
        reaches(&mut pair, "too big", &too_big.build(), Reason::IcmpError, backend)?;
        let mut echo = too_big.clone();
        (echo.kind, echo.code) = if is_ipv4 { (8, 0) } else { (128, 0) };
        pair.expect("an echo request", &echo.build(), Reason::OtherProtocol)?;
    }
    Ok(())
}

#[test]
fn options_and_first_fragments_are_no_reason_to_drop() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let (vip, backend) = service(Forwarding::Ipip, true, true);
    let mut with_options = segment(vip, flags::ACK);
    with_options.ip_options = vec![1, 1, 1, 0];
    reaches(&mut pair, "IP options", &with_options.build(), Reason::Adopted, backend)?;
    let mut fragment = segment(vip, flags::ACK);
    fragment.fragment = 0x2000;
    reaches(&mut pair, "a fragment", &fragment.build(), Reason::ToBackend, backend)?;
    let (vip, backend) = service(Forwarding::Ipip, false, false);
    let mut fragment = segment(vip, flags::ACK);
    fragment.extensions = vec![(44, vec![0, 0, 0, 1, 0, 0, 0, 9])];
    reaches(&mut pair, "a fragment of IPv6", &fragment.build(), Reason::Adopted, backend)?;
    pair.compare_tables()
}

#[test]
fn what_is_no_services_passes_and_what_is_too_big_is_dropped() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for is_ipv4 in [true, false] {
        let (vip, _) = service(Forwarding::Ipip, is_ipv4, is_ipv4);
        let elsewhere = segment((vip.0, 82), flags::ACK);
        pair.expect("another port", &elsewhere.build(), Reason::NoService)?;
        let mut tunnelled = segment(vip, flags::ACK);
        for protocol in [4, 41, 47] {
            tunnelled.protocol = protocol;
            pair.expect("a tunnel's", &tunnelled.build(), Reason::OtherProtocol)?;
        }
        let big = datagram(vip, &vec![7; if is_ipv4 { 1473 } else { 1453 }]);
        pair.expect("1501 bytes", &big.build(), Reason::TooBig)?;
    }
    let mut arp = segment(service(Forwarding::Ipip, true, true).0, flags::ACK).build();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    pair.expect("ARP", &arp, Reason::NotIp)?;
    pair.compare_tables()
}
