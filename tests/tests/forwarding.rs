//! Each way of forwarding, packet by packet, through the host's build and the loaded program.

use anyhow::{Context, Result, ensure};
use lb_common::{
    abi::Forwarding,
    datapath::{Reason, Table},
};
use lb_tests::{
    frame::{Segment, flags},
    icmp::Message,
    pair::Pair,
    seen::{self, Outer, Seen},
    world::{
        CLIENT, NAT_SOURCE, NAT_SOURCE_IPV6, OTHER_FORWARDINGS, OWN_MAC, Socket, VIP, World,
        backend_address, backend_mac, client_of,
    },
};

/// The services of a forwarding, of both families, each with its only backend.
fn services(wanted: Forwarding) -> impl Iterator<Item = (Socket, u32)> {
    let of_it = OTHER_FORWARDINGS.into_iter().filter(move |(forwarding, ..)| *forwarding == wanted);
    of_it.map(|(_, vip, backend)| (vip, backend))
}

fn service(wanted: Forwarding) -> Result<(Socket, u32)> {
    services(wanted).next().context("no such service")
}

fn from_client(vip: Socket, flags: u8) -> Segment {
    let mut segment = Segment::syn(client_of(vip.0), vip).with_flags(flags);
    segment.sequence = 1001;
    segment.acknowledgement = 5001;
    segment.payload = b"GET /client/ HTTP/1.1\r\n".to_vec();
    segment
}

fn from_backend(backend: u32, flags: u8) -> Segment {
    let address = backend_address(backend);
    let mut segment = Segment::syn(address, client_of(address.0)).with_flags(flags);
    segment.source_mac = backend_mac(backend);
    segment.sequence = if flags & flags::SYN != 0 { 5000 } else { 5001 };
    segment.acknowledgement = 1001;
    segment
}

/// Demands that a frame is sent to a backend, and returns what comes out of an outer header.
fn delivered(
    pair: &mut Pair,
    what: &str,
    segment: &Segment,
    reason: Reason,
    backend: u32,
) -> Result<(Option<Outer>, Seen)> {
    let outcome = pair.expect(what, &segment.build(), reason)?;
    let (outer, inner) = seen::decapsulate(&outcome.frame)?;
    let seen = Seen::new(&inner);
    ensure!(seen.destination_mac == backend_mac(backend), "{what}: {seen:?}");
    ensure!(seen.source_mac == OWN_MAC, "{what}: {seen:?}");
    Ok((outer, seen))
}

#[test]
fn nat_shows_the_backend_the_clients_own_address_and_port() -> Result<()> {
    for (vip, backend) in services(Forwarding::Nat) {
        nat_shows_the_client(vip, backend)?;
    }
    Ok(())
}

fn nat_shows_the_client(vip: Socket, backend: u32) -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let client = client_of(vip.0);
    let request = |pair: &mut Pair, what: &str, segment: &Segment, reason| {
        let (outer, seen) = delivered(pair, what, segment, reason, backend)?;
        ensure!(outer.is_none() && seen.source == client, "{what}: {seen:?}");
        ensure!(seen.destination == backend_address(backend), "{what}: {seen:?}");
        Ok(())
    };
    let reply = |pair: &mut Pair, what: &str, segment: &Segment| {
        let outcome = pair.expect(what, &segment.build(), Reason::ToClient)?;
        let seen = Seen::new(&outcome.frame);
        ensure!(seen.source == vip && seen.destination == client, "{what}: {seen:?}");
        Ok(())
    };
    request(&mut pair, "SYN", &Segment::syn(client, vip), Reason::Opened)?;
    let syn_ack = from_backend(backend, flags::SYN | flags::ACK);
    let mut flooded = syn_ack.clone();
    flooded.destination_mac[5] = 0x99;
    pair.expect("a SYN-ACK for another station", &flooded.build(), Reason::OtherStation)?;
    reply(&mut pair, "SYN-ACK", &syn_ack)?;
    request(&mut pair, "ACK", &from_client(vip, flags::ACK), Reason::ToBackend)?;
    reply(&mut pair, "data", &from_backend(backend, flags::ACK))?;
    let mut flooded = from_backend(backend, flags::ACK);
    flooded.destination_mac[5] = 0x99;
    pair.expect("data for another station", &flooded.build(), Reason::OtherStation)?;
    request(&mut pair, "FIN", &from_client(vip, flags::ACK | flags::FIN), Reason::ToBackend)?;
    reply(&mut pair, "FIN", &from_backend(backend, flags::ACK | flags::FIN))?;
    pair.compare_tables()
}

#[test]
fn nat_refuses_a_second_connection_from_one_port_to_one_backend_while_the_first_lives() -> Result<()>
{
    let mut pair = Pair::new(&World::default())?;
    let (vip, backend) = service(Forwarding::Nat)?;
    let (_, other, _) = OTHER_FORWARDINGS[4];
    pair.expect("SYN", &Segment::syn(CLIENT, vip).build(), Reason::Opened)?;
    let syn_ack = from_backend(backend, flags::SYN | flags::ACK).build();
    pair.expect("SYN-ACK", &syn_ack, Reason::ToClient)?;
    let second = Segment::syn(CLIENT, other).build();
    pair.expect("a SYN by the other service, too early", &second, Reason::TupleInUse)?;
    pair.expect("ACK", &from_client(vip, flags::ACK).build(), Reason::ToBackend)?;
    pair.expect("a SYN by the other service", &second, Reason::TupleInUse)?;

    pair.expect("RST", &from_client(vip, flags::RST).build(), Reason::ToBackend)?;
    pair.expect("though that may be a stranger's", &second, Reason::TupleInUse)?;
    pair.expect("RST", &from_backend(backend, flags::RST).build(), Reason::ToClient)?;
    pair.expect("now that the first is over", &second, Reason::Opened)?;
    let outcome = pair.expect("SYN-ACK", &syn_ack, Reason::ToClient)?;
    ensure!(Seen::new(&outcome.frame).source == other, "{outcome:?}");
    pair.compare_tables()
}

#[test]
fn direct_return_leaves_the_segment_as_the_client_sent_it() -> Result<()> {
    let direct =
        OTHER_FORWARDINGS.into_iter().filter(|(forwarding, ..)| !forwarding.sees_replies());
    for (forwarding, vip, backend) in direct {
        let mut pair = Pair::new(&World::default())?;
        let client = client_of(vip.0);
        let (address, _) = backend_address(backend);
        let mut ports = Vec::new();
        let segments = [
            ("SYN", Segment::syn(client, vip), Reason::Opened),
            ("ACK", from_client(vip, flags::ACK), Reason::ToBackend),
            ("data", from_client(vip, flags::ACK | flags::PSH), Reason::ToBackend),
            ("FIN", from_client(vip, flags::ACK | flags::FIN), Reason::ToBackend),
            ("the last ACK", from_client(vip, flags::ACK), Reason::ToBackend),
        ];
        for (what, segment, reason) in segments {
            let what = format!("{} {vip:?}: {what}", forwarding.name());
            let (outer, seen) = delivered(&mut pair, &what, &segment, reason, backend)?;
            ensure!(seen.source == client && seen.destination == vip, "{what}: {seen:?}");
            match outer {
                None => ensure!(forwarding == Forwarding::Dsr, "{what}: no outer header"),
                Some(outer) => {
                    let own = if address.is_ipv4() { NAT_SOURCE } else { NAT_SOURCE_IPV6 };
                    ensure!(outer.source == own, "{what}: {outer:?}");
                    ensure!(outer.destination == address, "{what}: {outer:?}");
                    let is_gue = forwarding == Forwarding::Gue;
                    ensure!(outer.udp_source.is_some() == is_gue, "{what}: {outer:?}");
                    ports.extend(outer.udp_source);
                }
            }
        }
        ports.dedup();
        ensure!(ports.len() <= 1, "a flow keeps its outer source port: {ports:?}");
        pair.compare_tables()?;
        ensure!(pair.host.flows(Table::Established).len() == 1, "one entry a flow");
    }
    Ok(())
}

#[test]
fn direct_return_keeps_established_connections_when_the_ring_changes() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let (vip, backend) = service(Forwarding::Dsr)?;
    let (_, other) = service(Forwarding::Gue)?;
    let syn = Segment::syn(CLIENT, vip);
    delivered(&mut pair, "SYN", &syn, Reason::Opened, backend)?;
    pair.hand_slots(backend, other)?;
    // Nothing shows that the first one has answered.
    let (outer, _) = delivered(&mut pair, "SYN again", &syn, Reason::Opened, other)?;
    ensure!(outer.is_some(), "the other backend's own forwarding");
    delivered(&mut pair, "ACK", &from_client(vip, flags::ACK), Reason::ToBackend, other)?;

    pair.hand_slots(other, backend)?;
    delivered(&mut pair, "data", &from_client(vip, flags::ACK), Reason::ToBackend, other)?;
    delivered(&mut pair, "a SYN in between", &syn, Reason::ToBackend, other)?;
    let fin = from_client(vip, flags::ACK | flags::FIN);
    delivered(&mut pair, "FIN", &fin, Reason::ToBackend, other)?;
    delivered(&mut pair, "the rest", &from_client(vip, flags::ACK), Reason::ToBackend, other)?;
    // For all that is known, a stranger sent FIN.
    delivered(&mut pair, "the port in use again", &syn, Reason::ToBackend, other)?;
    delivered(&mut pair, "FIN", &fin, Reason::ToBackend, other)?;
    pair.change_backend(other, |backend| backend.is_down = 1)?;
    delivered(&mut pair, "and once more", &syn, Reason::Opened, backend)?;
    pair.compare_tables()
}

#[test]
fn by_direct_return_a_connection_of_another_balancer_goes_on() -> Result<()> {
    let direct =
        OTHER_FORWARDINGS.into_iter().filter(|(forwarding, ..)| !forwarding.sees_replies());
    let mut pair = Pair::new(&World::default())?;
    for (forwarding, vip, backend) in direct {
        pair.reset()?;
        let what = format!("{} {vip:?}", forwarding.name());
        // An error about what the backend has sent, before anything is known.
        let about = Segment::syn(vip, client_of(vip.0)).build();
        let error = Message::too_big(client_of(vip.0).0, vip.0, 1300, &about[14..]).build();
        let sent = pair.expect(&what, &error, Reason::IcmpError)?;
        ensure!(sent.frame[..6] == backend_mac(backend), "{what}: {:02x?}", sent.frame);

        let data = from_client(vip, flags::ACK | flags::PSH);
        delivered(&mut pair, &what, &data, Reason::Adopted, backend)?;
        ensure!(pair.host.flows(Table::Established).is_empty(), "{what}: one may be an invention");
        delivered(&mut pair, &what, &data, Reason::ToBackend, backend)?;
        ensure!(pair.host.flows(Table::Established).len() == 1, "{what}");
        pair.compare_tables()?;
    }
    // What is translated can't be known.
    for forwarding in [Forwarding::FullNat, Forwarding::Nat] {
        let vip = if forwarding == Forwarding::Nat { service(forwarding)?.0 } else { VIP };
        pair.expect("an ACK", &from_client(vip, flags::ACK).build(), Reason::NoFlow)?;
        let about = Segment::syn(vip, client_of(vip.0)).build();
        let error = Message::too_big(client_of(vip.0).0, vip.0, 1300, &about[14..]).build();
        pair.expect("an error", &error, Reason::OtherProtocol)?;
    }
    Ok(())
}

#[test]
fn by_direct_return_a_full_table_keeps_nobody_out() -> Result<()> {
    const ROOM: u32 = 8;
    let mut pair = Pair::new(&World { flows: ROOM, ..World::default() })?;
    let (vip, backend) = service(Forwarding::Dsr)?;
    for port in 40_000..40_000 + 4 * ROOM as u16 {
        let of_client = |mut segment: Segment| {
            segment.source_port = port;
            segment
        };
        let syn = of_client(Segment::syn(CLIENT, vip));
        delivered(&mut pair, "SYN", &syn, Reason::Opened, backend)?;
        for _ in 0..3 {
            let data = of_client(from_client(vip, flags::ACK));
            delivered(&mut pair, "data", &data, Reason::ToBackend, backend)?;
        }
    }
    // An entry a flow, and twice as many as flows that need two.
    ensure!(pair.host.flows(Table::Established).len() == 2 * ROOM as usize);
    pair.compare_tables()
}

#[test]
fn a_flows_outer_source_port_differs_from_anothers() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let (vip, backend) = service(Forwarding::Gue)?;
    let mut ports = std::collections::HashSet::new();
    for port in 40_000..40_100 {
        let syn = Segment::syn((CLIENT.0, port), vip);
        let (outer, _) = delivered(&mut pair, "SYN", &syn, Reason::Opened, backend)?;
        let source = outer.and_then(|outer| outer.udp_source).context("GUE")?;
        ensure!(source >= 49_152, "{source}");
        ports.insert(source);
    }
    ensure!(ports.len() > 90, "{ports:?}");
    Ok(())
}

#[test]
fn what_does_not_fit_with_the_outer_header_is_refused_also_within_a_flow() -> Result<()> {
    let encapsulating =
        OTHER_FORWARDINGS.into_iter().filter(|(forwarding, ..)| forwarding.encapsulates());
    for (forwarding, vip, backend) in encapsulating {
        let mut pair = Pair::new(&World::default())?;
        let udp = if forwarding == Forwarding::Gue { 8 } else { 0 };
        let header = |ipv4: bool| if ipv4 { 20 } else { 40 };
        let longest = 1500 - header(backend_address(backend).0.is_ipv4()) - udp;
        delivered(&mut pair, "SYN", &Segment::syn(client_of(vip.0), vip), Reason::Opened, backend)?;
        let mut segment = from_client(vip, flags::ACK);
        segment.payload = vec![7; longest - header(vip.0.is_ipv4()) - 20];
        delivered(&mut pair, "longest", &segment, Reason::ToBackend, backend)?;
        segment.payload.push(7);
        pair.expect("longer", &segment.build(), Reason::NeedsFragmentation)?;
        pair.compare_tables()?;
    }
    Ok(())
}

#[test]
fn answers_of_a_nat_backend_to_the_host_itself_are_passed() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let (_, backend) = service(Forwarding::Nat)?;
    for flags in [flags::SYN | flags::ACK, flags::ACK, flags::RST] {
        let segment =
            Segment::syn(backend_address(backend), (NAT_SOURCE, 45_678)).with_flags(flags);
        pair.expect("to a check", &segment.build(), Reason::NoService)?;
    }
    pair.expect("to the VIP", &Segment::syn(CLIENT, (VIP.0, 9)).build(), Reason::NoService)?;
    Ok(())
}
