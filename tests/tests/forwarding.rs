//! Each way of forwarding, packet by packet, through the host's build and the loaded program.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use lb_common::{
    abi::Forwarding,
    datapath::{Reason, Table},
};
use lb_tests::{
    frame::{self, Outer, Seen, Tcp, flags},
    pair::Pair,
    world::{
        CLIENT, NAT_SOURCE, OTHER_FORWARDINGS, OWN_MAC, VIP, World, backend_address, backend_mac,
    },
};

type Socket = (Ipv4Addr, u16);

fn service(wanted: Forwarding) -> Result<(Socket, u32)> {
    let found = OTHER_FORWARDINGS.iter().find(|(forwarding, ..)| *forwarding == wanted);
    let (_, vip, backend) = found.context("no such service")?;
    Ok((*vip, *backend))
}

fn from_client(vip: Socket, flags: u8) -> Tcp {
    let mut segment = Tcp::syn(CLIENT, vip).with_flags(flags);
    segment.sequence = 1001;
    segment.acknowledgement = 5001;
    segment.payload = b"GET /client/ HTTP/1.1\r\n".to_vec();
    segment
}

fn from_backend(backend: u32, flags: u8) -> Tcp {
    let mut segment = Tcp::syn(backend_address(backend), CLIENT).with_flags(flags);
    segment.source_mac = backend_mac(backend);
    segment.sequence = if flags & flags::SYN != 0 { 5000 } else { 5001 };
    segment.acknowledgement = 1001;
    segment
}

/// Demands that a frame is sent to a backend, and returns what comes out of an outer header.
fn delivered(
    pair: &mut Pair,
    what: &str,
    segment: &Tcp,
    reason: Reason,
    backend: u32,
) -> Result<(Option<Outer>, Seen)> {
    let outcome = pair.expect(what, &segment.build(), reason)?;
    let (outer, inner) = frame::decapsulate(&outcome.frame)?;
    let seen = Seen::new(&inner);
    ensure!(seen.destination_mac == backend_mac(backend), "{what}: {seen:?}");
    ensure!(seen.source_mac == OWN_MAC, "{what}: {seen:?}");
    Ok((outer, seen))
}

#[test]
fn nat_shows_the_backend_the_clients_own_address_and_port() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let (vip, backend) = service(Forwarding::Nat)?;
    let request = |pair: &mut Pair, what: &str, segment: &Tcp, reason| {
        let (outer, seen) = delivered(pair, what, segment, reason, backend)?;
        ensure!(outer.is_none() && seen.source == CLIENT, "{what}: {seen:?}");
        ensure!(seen.destination == backend_address(backend), "{what}: {seen:?}");
        Ok(())
    };
    let reply = |pair: &mut Pair, what: &str, segment: &Tcp| {
        let outcome = pair.expect(what, &segment.build(), Reason::ToClient)?;
        let seen = Seen::new(&outcome.frame);
        ensure!(seen.source == vip && seen.destination == CLIENT, "{what}: {seen:?}");
        Ok(())
    };
    request(&mut pair, "SYN", &Tcp::syn(CLIENT, vip), Reason::Opened)?;
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
    pair.expect("SYN", &Tcp::syn(CLIENT, vip).build(), Reason::Opened)?;
    let syn_ack = from_backend(backend, flags::SYN | flags::ACK).build();
    pair.expect("SYN-ACK", &syn_ack, Reason::ToClient)?;
    pair.expect("ACK", &from_client(vip, flags::ACK).build(), Reason::ToBackend)?;
    let second = Tcp::syn(CLIENT, other).build();
    pair.expect("a SYN by the other service", &second, Reason::TupleInUse)?;

    pair.expect("RST", &from_client(vip, flags::RST).build(), Reason::ToBackend)?;
    pair.expect("now that the first is over", &second, Reason::Opened)?;
    let outcome = pair.expect("SYN-ACK", &syn_ack, Reason::ToClient)?;
    ensure!(Seen::new(&outcome.frame).source == other, "{outcome:?}");
    pair.compare_tables()
}

#[test]
fn direct_return_leaves_the_segment_as_the_client_sent_it() -> Result<()> {
    for forwarding in [Forwarding::Dsr, Forwarding::Ipip, Forwarding::Gue] {
        let mut pair = Pair::new(&World::default())?;
        let (vip, backend) = service(forwarding)?;
        let (address, _) = backend_address(backend);
        let mut ports = Vec::new();
        let segments = [
            ("SYN", Tcp::syn(CLIENT, vip), Reason::Opened),
            ("ACK", from_client(vip, flags::ACK), Reason::ToBackend),
            ("data", from_client(vip, flags::ACK | flags::PSH), Reason::ToBackend),
            ("FIN", from_client(vip, flags::ACK | flags::FIN), Reason::ToBackend),
            ("the last ACK", from_client(vip, flags::ACK), Reason::ToBackend),
        ];
        for (what, segment, reason) in segments {
            let what = format!("{}: {what}", forwarding.name());
            let (outer, seen) = delivered(&mut pair, &what, &segment, reason, backend)?;
            ensure!(seen.source == CLIENT && seen.destination == vip, "{what}: {seen:?}");
            match outer {
                None => ensure!(forwarding == Forwarding::Dsr, "{what}: no outer header"),
                Some(outer) => {
                    ensure!(outer.source == NAT_SOURCE, "{what}: {outer:?}");
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
    let syn = Tcp::syn(CLIENT, vip);
    delivered(&mut pair, "SYN", &syn, Reason::Opened, backend)?;
    pair.hand_slots(backend, other);
    // Nothing shows that the first one has answered.
    let (outer, _) = delivered(&mut pair, "SYN again", &syn, Reason::Opened, other)?;
    ensure!(outer.is_some(), "the other backend's own forwarding");
    delivered(&mut pair, "ACK", &from_client(vip, flags::ACK), Reason::ToBackend, other)?;

    pair.hand_slots(other, backend);
    delivered(&mut pair, "data", &from_client(vip, flags::ACK), Reason::ToBackend, other)?;
    delivered(&mut pair, "a SYN in between", &syn, Reason::ToBackend, other)?;
    let fin = from_client(vip, flags::ACK | flags::FIN);
    delivered(&mut pair, "FIN", &fin, Reason::ToBackend, other)?;
    delivered(&mut pair, "the rest", &from_client(vip, flags::ACK), Reason::ToBackend, other)?;
    delivered(&mut pair, "the port in use again", &syn, Reason::Opened, backend)?;
    pair.compare_tables()
}

#[test]
fn a_flows_outer_source_port_differs_from_anothers() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let (vip, backend) = service(Forwarding::Gue)?;
    let mut ports = std::collections::HashSet::new();
    for port in 40_000..40_100 {
        let syn = Tcp::syn((CLIENT.0, port), vip);
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
    for (forwarding, longest) in [(Forwarding::Ipip, 1480), (Forwarding::Gue, 1472)] {
        let mut pair = Pair::new(&World::default())?;
        let (vip, backend) = service(forwarding)?;
        delivered(&mut pair, "SYN", &Tcp::syn(CLIENT, vip), Reason::Opened, backend)?;
        let mut segment = from_client(vip, flags::ACK);
        segment.payload = vec![7; longest - 40];
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
        let segment = Tcp::syn(backend_address(backend), (NAT_SOURCE, 45_678)).with_flags(flags);
        pair.expect("to a check", &segment.build(), Reason::NoService)?;
    }
    pair.expect("to the VIP", &Tcp::syn(CLIENT, (VIP.0, 9)).build(), Reason::NoService)?;
    Ok(())
}
