//! ICMP errors about flows, packet by packet, through the host's build and the loaded program, over
//! both address families.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use lb_common::{abi::Forwarding, datapath::Reason};
use lb_tests::{
    frame::{Segment, fix_ip_checksum, flags},
    icmp::Message,
    pair::Pair,
    seen::{self, Seen},
    world::{
        BACKENDS, BACKENDS_IPV6, OTHER_FORWARDINGS, OWN_MAC, Socket, VIP, VIP_IPV6, World,
        backend_address, backend_mac, client_of,
    },
};

/// A router that nobody knows.
fn router(like: IpAddr) -> IpAddr {
    let text = if like.is_ipv4() { "203.0.113.99" } else { "2001:db8:99::1" };
    text.parse().expect("an address")
}

/// The datagram in a frame, with one hop less.
fn forwarded_once(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let hops = if frame[14] >> 4 == 4 { 14 + 8 } else { 14 + 7 };
    frame[hops] -= 1;
    fix_ip_checksum(&mut frame);
    frame[14..].to_vec()
}

/// A flow of a NAT mode that was just opened, and a datagram of each direction: as it came, and as
/// it was sent on.
struct Opened {
    request: [Vec<u8>; 2],
    reply: [Vec<u8>; 2],
    backend: u32,
    /// Whom the backend sees.
    peer: Socket,
}

fn open(pair: &mut Pair, vip: Socket, is_udp: bool) -> Result<Opened> {
    let client = client_of(vip.0);
    let mut request = if is_udp { Segment::udp(client, vip) } else { Segment::syn(client, vip) };
    request.payload = vec![7; 600];
    let request = request.build();
    let outcome = pair.expect("a request", &request, Reason::Opened)?;
    let seen = Seen::new(&outcome.frame);
    let others = OTHER_FORWARDINGS.map(|(.., backend)| backend);
    let mut backends = BACKENDS.into_iter().chain(BACKENDS_IPV6).chain(others);
    let is_it = |backend: &u32| backend_mac(*backend) == seen.destination_mac;
    let backend = backends.find(is_it).context("no backend")?;
    let from = backend_address(backend);
    let mut reply =
        if is_udp { Segment::udp(from, seen.source) } else { Segment::syn(from, seen.source) };
    reply.flags = flags::SYN | flags::ACK;
    reply.payload = vec![8; 601];
    reply.source_mac = backend_mac(backend);
    let reply = reply.build();
    let answered = pair.expect("a reply", &reply, Reason::ToClient)?;
    Ok(Opened {
        request: [request, outcome.frame],
        reply: [reply, answered.frame],
        backend,
        peer: seen.source,
    })
}

/// Lengths of what is quoted, from the network header on: the least, some more, and all.
fn quotes(datagram: &[u8]) -> [usize; 4] {
    let header = if datagram[0] >> 4 == 4 { 20 } else { 40 };
    [header + 8, header + 18, header + 21, datagram.len().min(1200)]
}

fn nat_services() -> Vec<(Forwarding, Socket)> {
    let others = OTHER_FORWARDINGS.into_iter();
    let nat = others.filter(|(forwarding, ..)| *forwarding == Forwarding::Nat);
    let nat = nat.map(|(forwarding, vip, _)| (forwarding, vip));
    [VIP, VIP_IPV6].map(|vip| (Forwarding::FullNat, vip)).into_iter().chain(nat).collect()
}

#[test]
fn the_client_finds_what_it_sent_in_an_error_from_the_backends_side() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for ((forwarding, vip), is_udp) in with_protocols(nat_services()) {
        let what = format!("{} {vip:?}, UDP: {is_udp}", forwarding.name());
        pair.reset()?;
        let flow = open(&mut pair, vip, is_udp)?;
        let sent = &flow.request[1][14..];
        let expected = forwarded_once(&flow.request[0]);
        for length in quotes(sent) {
            for from in [router(vip.0), backend_address(flow.backend).0] {
                let mut message = Message::too_big(from, flow.peer.0, 1400, &sent[..length]);
                message.source_mac = backend_mac(flow.backend);
                let outcome = pair.run(&message.build()).with_context(|| what.clone())?;
                ensure!(outcome.reason == Reason::IcmpError, "{what}: {:?}", outcome.reason);
                let read = Message::read(&outcome.frame).with_context(|| what.clone())?;
                let mut wanted =
                    Message::too_big(vip.0, client_of(vip.0).0, 1400, &expected[..length]);
                wanted.time_to_live = 63;
                (wanted.source_mac, wanted.destination_mac) = (OWN_MAC, [2, 0, 0, 0, 0, 1]);
                ensure!(read == wanted, "{what}, {length}:\n{read:02x?}\n{wanted:02x?}");
            }
        }
        pair.compare_tables()?;
    }
    Ok(())
}

#[test]
fn the_backend_finds_what_it_sent_in_an_error_from_the_clients_side() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for ((forwarding, vip), is_udp) in with_protocols(nat_services()) {
        let what = format!("{} {vip:?}, UDP: {is_udp}", forwarding.name());
        pair.reset()?;
        let flow = open(&mut pair, vip, is_udp)?;
        let sent = &flow.reply[1][14..];
        let expected = forwarded_once(&flow.reply[0]);
        let router = router(vip.0);
        for length in quotes(sent) {
            let message = Message::too_big(router, vip.0, 1400, &sent[..length]);
            let outcome = pair.run(&message.build()).with_context(|| what.clone())?;
            ensure!(outcome.reason == Reason::IcmpError, "{what}: {:?}", outcome.reason);
            let read = Message::read(&outcome.frame).with_context(|| what.clone())?;
            let hidden = forwarding == Forwarding::FullNat;
            let from = if hidden { flow.peer.0 } else { router };
            let to = backend_address(flow.backend).0;
            ensure!((read.source, read.destination) == (from, to), "{what}: {read:02x?}");
            ensure!(read.destination_mac == backend_mac(flow.backend), "{what}: {read:02x?}");
            ensure!(read.quoted == expected[..length], "{what}, {length}: {read:02x?}");
            ensure!(read.rest == message.rest && read.time_to_live == 63, "{what}: {read:02x?}");
        }
        pair.compare_tables()?;
    }
    Ok(())
}

#[test]
fn by_direct_return_the_backend_gets_the_error_as_it_came() -> Result<()> {
    let direct = OTHER_FORWARDINGS.into_iter();
    let direct = direct.filter(|(forwarding, ..)| !forwarding.sees_replies());
    let mut pair = Pair::new(&World::default())?;
    for ((forwarding, vip, backend), is_udp) in with_protocols(direct.collect()) {
        let what = format!("{} {vip:?}, UDP: {is_udp}", forwarding.name());
        pair.reset()?;
        let client = client_of(vip.0);
        let new = if is_udp { Segment::udp } else { Segment::syn };
        pair.expect(&what, &new(client, vip).build(), Reason::Opened)?;
        // What the backend sent to the client by itself.
        let mut reply = new(vip, client);
        reply.payload = vec![9; 300];
        let message = Message::too_big(router(vip.0), vip.0, 1400, &reply.build()[14..]);
        let outcome = pair.run(&message.build()).with_context(|| what.clone())?;
        ensure!(outcome.reason == Reason::IcmpError, "{what}: {:?}", outcome.reason);
        let (outer, inner) = seen::decapsulate(&outcome.frame)?;
        ensure!(outer.is_some() == forwarding.encapsulates(), "{what}: {outer:?}");
        let read = Message::read(&inner).with_context(|| what.clone())?;
        let mut wanted = message.clone();
        wanted.time_to_live = 63;
        (wanted.source_mac, wanted.destination_mac) = (OWN_MAC, backend_mac(backend));
        ensure!(read == wanted, "{what}: {read:02x?}");
        // For somebody else, who didn't send what it is about.
        let stray = Message::too_big(router(vip.0), client.0, 1400, &reply.build()[14..]);
        pair.expect(&what, &stray.build(), Reason::OtherProtocol)?;
        pair.compare_tables()?;
    }
    Ok(())
}

#[test]
fn a_backend_is_told_how_long_what_it_sends_to_the_client_may_be() -> Result<()> {
    const LONGEST: u16 = 1400;
    let mut world = World::default();
    world.local_macs[0].1 = LONGEST.into();
    let mut pair = Pair::new(&world)?;
    for ((forwarding, vip), is_udp) in with_protocols(nat_services()) {
        pair.reset()?;
        let what = format!("{} {vip:?}, UDP: {is_udp}", forwarding.name());
        let flow = open(&mut pair, vip, is_udp)?;
        let from = backend_address(flow.backend);
        let new = if is_udp { Segment::udp } else { Segment::syn };
        let mut reply = new(from, flow.peer).with_flags(flags::ACK);
        reply.source_mac = backend_mac(flow.backend);
        let headers = if vip.0.is_ipv4() { 20 } else { 40 } + if is_udp { 8 } else { 20 };
        reply.payload = vec![9; usize::from(LONGEST) - headers];
        pair.expect(&what, &reply.build(), Reason::ToClient)?;
        reply.payload.push(9);
        let frame = reply.build();
        let outcome = pair.expect(&what, &frame, Reason::NeedsFragmentation)?;
        let read = Message::read(&outcome.frame).with_context(|| what.clone())?;
        let mut wanted = Message::too_big(flow.peer.0, from.0, LONGEST, &read.quoted);
        wanted.source_mac = OWN_MAC;
        wanted.destination_mac = backend_mac(flow.backend);
        ensure!(read == wanted, "{what}: {read:02x?}");
        pair.compare_tables()?;
    }
    Ok(())
}

fn with_protocols<T: Copy>(services: Vec<T>) -> impl Iterator<Item = (T, bool)> {
    services.into_iter().flat_map(|service| [(service, false), (service, true)])
}

#[test]
fn every_error_passes_and_nothing_else_of_icmp_is_touched() -> Result<()> {
    for vip in [VIP, VIP_IPV6] {
        let mut pair = Pair::new(&World::default())?;
        let flow = open(&mut pair, vip, false)?;
        let about = |quoted: &[u8], change: &dyn Fn(&mut Message)| {
            let mut message = Message::too_big(router(vip.0), flow.peer.0, 0, quoted);
            change(&mut message);
            message.build()
        };
        let sent = &flow.request[1][14..];
        let errors: &[u8] = if vip.0.is_ipv4() { &[3, 11, 12] } else { &[1, 2, 3, 4] };
        for kind in 0..=255 {
            let reason =
                if errors.contains(&kind) { Reason::IcmpError } else { Reason::OtherProtocol };
            let outcome = pair.run(&about(sent, &|message| message.kind = kind))?;
            ensure!(outcome.reason == reason, "type {kind}: {:?}", outcome.reason);
        }
        for (what, length) in [("ports cut off", 7), ("no transport header", 0)] {
            let header = if vip.0.is_ipv4() { 20 } else { 40 };
            let outcome = pair.run(&about(&sent[..header + length], &|_| {}))?;
            ensure!(outcome.reason == Reason::OtherProtocol, "{what}: {:?}", outcome.reason);
        }
        let stranger = Segment::syn(vip, (client_of(vip.0).0, 40_001)).build();
        let outcome = pair.run(&about(&stranger[14..], &|_| {}))?;
        ensure!(outcome.reason == Reason::OtherProtocol, "about no flow: {:?}", outcome.reason);
        let outcome = pair.run(&about(sent, &|message| message.time_to_live = 1))?;
        ensure!(outcome.reason == Reason::TimeToLiveExpired, "{:?}", outcome.reason);
        let outcome = pair.run(&about(sent, &|message| message.destination_mac[5] = 0x99))?;
        ensure!(outcome.reason == Reason::OtherStation, "{:?}", outcome.reason);
        pair.compare_tables()?;
    }
    Ok(())
}

#[test]
fn the_sender_of_what_is_too_long_is_told_how_long_it_may_be() -> Result<()> {
    let encapsulating = OTHER_FORWARDINGS.into_iter();
    let encapsulating = encapsulating.filter(|(forwarding, ..)| forwarding.encapsulates());
    let mut pair = Pair::new(&World::default())?;
    for ((forwarding, vip, backend), is_udp) in with_protocols(encapsulating.collect()) {
        let what = format!("{} {vip:?}, UDP: {is_udp}", forwarding.name());
        pair.reset()?;
        let client = client_of(vip.0);
        let new = if is_udp { Segment::udp } else { Segment::syn };
        let mut datagram = new(client, vip);
        let headers = if vip.0.is_ipv4() { 20 } else { 40 } + if is_udp { 8 } else { 20 };
        datagram.payload = (headers..1500).map(|byte| byte as u8).collect();
        let frame = datagram.build();
        let outcome = pair.expect(&what, &frame, Reason::NeedsFragmentation)?;
        let read = Message::read(&outcome.frame).with_context(|| what.clone())?;
        let udp = if forwarding == Forwarding::Gue { 8 } else { 0 };
        let outer = if backend_address(backend).0.is_ipv4() { 20 } else { 40 };
        let longest = 1500 - outer - udp;
        let limit = if vip.0.is_ipv4() { 576 } else { 1280 };
        let mut wanted = Message::too_big(vip.0, client.0, longest, &read.quoted);
        (wanted.source_mac, wanted.destination_mac) = (OWN_MAC, [2, 0, 0, 0, 0, 1]);
        ensure!(read == wanted, "{what}: {read:02x?}");
        ensure!(frame[14..].starts_with(&read.quoted), "{what}: {read:02x?}");
        let length = outcome.frame.len() - 14;
        ensure!((limit - 8..=limit).contains(&length), "{what}: {length}");
        pair.compare_tables()?;
    }
    Ok(())
}
