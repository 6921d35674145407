//! Backends that refuse, don't answer or are down, packet by packet, through the host's build and the loaded
//! program.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use lb_common::{
    abi::{Fate, Forwarding, Moment},
    datapath::{Reason, Table},
};
use lb_tests::{
    connection::Connection,
    frame::{Segment, flags},
    host::{Host, Outcome},
    icmp::Message,
    pair::Pair,
    seen::{Seen, demand_reset},
    world::{
        BACKENDS, BACKENDS_IPV6, CLIENT, OTHER_FORWARDINGS, Socket, VIP, VIP_IPV6, World,
        backend_address, backend_mac, client_of,
    },
};

/// The backend that a frame was sent to.
fn receiver(outcome: &Outcome) -> u32 {
    let destination = Seen::new(&outcome.frame).destination;
    let mut all = BACKENDS.into_iter().chain(BACKENDS_IPV6);
    all.find(|index| backend_address(*index) == destination).unwrap_or(0)
}

/// A backend's refusal of a connection.
fn refusal(connection: &Connection) -> Segment {
    let mut segment = connection.from_backend(flags::RST | flags::ACK);
    segment.sequence = 0;
    segment.payload.clear();
    segment
}

#[test]
fn a_refused_connection_goes_elsewhere_with_its_next_syn() -> Result<()> {
    for vip in [VIP, VIP_IPV6] {
        let mut pair = Pair::new(&World::default())?;
        let first = Connection::open(&mut pair, vip)?;
        pair.expect("refusal", &refusal(&first).build(), Reason::RefusalWithheld)?;
        pair.expect("again", &refusal(&first).build(), Reason::NoService)?;
        let second = Connection::open(&mut pair, vip)?;
        ensure!(second.backend != first.backend, "{second:?}");
        second.establish(&mut pair)?;
        pair.compare_tables()?;
    }
    Ok(())
}

#[test]
fn a_connection_that_every_backend_refuses_is_refused_and_the_next_at_once() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let mut tried = BTreeSet::new();
    for number in 1..=BACKENDS.len() {
        let connection = Connection::open(&mut pair, VIP)?;
        ensure!(tried.insert(connection.backend), "{connection:?} was tried before");
        if number < BACKENDS.len() {
            pair.expect("refusal", &refusal(&connection).build(), Reason::RefusalWithheld)?;
        } else {
            connection.reply(&mut pair, "the last refusal", &refusal(&connection))?;
        }
    }
    ensure!(pair.host.flows(Table::Embryonic).is_empty());
    let next = Connection::open_from(&mut pair, (CLIENT.0, 41_000), VIP)?;
    next.reply(&mut pair, "refused at once", &next.from_backend(flags::RST))?;
    pair.compare_tables()
}

#[test]
fn a_port_that_is_used_again_after_a_reset_goes_elsewhere_when_its_backend_refuses() -> Result<()> {
    for vip in [VIP, VIP_IPV6] {
        let mut pair = Pair::new(&World::default())?;
        let first = Connection::open(&mut pair, vip)?;
        first.establish(&mut pair)?;
        first.request(&mut pair, "RST", &first.from_client(flags::RST | flags::ACK))?;
        first.request(&mut pair, "SYN", &Segment::syn(first.client, vip))?;
        pair.expect("refusal", &refusal(&first).build(), Reason::RefusalWithheld)?;
        let before = pair.host.clone();
        let second = Connection::open(&mut pair, vip)?;
        ensure!(second.backend != first.backend, "{second:?}");
        second.establish(&mut pair)?;
        pair.compare_tables()?;
        // The connection may have gone on nevertheless.
        let outcome = before.run(&first.from_client(flags::ACK).build());
        ensure!(outcome.reason == Reason::ToBackend, "{outcome:?}");
    }
    Ok(())
}

#[test]
fn new_connections_spare_a_backend_that_refused_until_it_takes_one() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let first = Connection::open(&mut pair, VIP)?;
    pair.expect("refusal", &refusal(&first).build(), Reason::RefusalWithheld)?;
    for port in 20_000..20_030 {
        let other = Connection::open_from(&mut pair, (CLIENT.0, port), VIP)?;
        ensure!(other.backend != first.backend, "{other:?}");
    }
    pair.compare_tables()
}

#[test]
fn a_refusal_after_an_answer_reaches_the_client() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let connection = Connection::open(&mut pair, VIP)?;
    connection.reply(&mut pair, "SYN-ACK", &connection.syn_ack())?;
    connection.reply(&mut pair, "RST", &connection.from_backend(flags::RST))?;
    ensure!(pair.host.flows(Table::Embryonic).is_empty());
    pair.compare_tables()
}

/// Runs a SYN of a client at a number of milliseconds.
fn syn_at(host: &Host, vip: Socket, milliseconds: u64) -> Outcome {
    host.set_now(Moment::from_nanoseconds((1_000_000 + milliseconds) * 1_000_000));
    host.run(&Segment::syn(client_of(vip.0), vip).build())
}

#[test]
fn a_mute_backend_is_left_with_the_first_syn_that_is_sent_again() -> Result<()> {
    for vip in [VIP, VIP_IPV6] {
        let host = Host::new(&World::default());
        let first = syn_at(&host, vip, 0);
        let doubled = syn_at(&host, vip, 100);
        ensure!(doubled.reason == Reason::ToBackend && receiver(&doubled) == receiver(&first));
        let again = syn_at(&host, vip, 1000);
        ensure!(again.reason == Reason::Opened && receiver(&again) != receiver(&first));
    }
    Ok(())
}

#[test]
fn a_syn_without_an_answer_says_nothing_to_others() -> Result<()> {
    let host = Host::new(&World::default());
    let first = syn_at(&host, VIP, 0);
    let again = syn_at(&host, VIP, 1000);
    ensure!(again.reason == Reason::Opened && receiver(&again) != receiver(&first));
    let is_same = |port| {
        let other = host.run(&Segment::syn((CLIENT.0, port), VIP).build());
        receiver(&other) == receiver(&first)
    };
    ensure!((30_000..30_100).any(is_same), "it is spared");
    Ok(())
}

#[test]
fn a_reset_that_answers_something_else_than_the_syn_is_no_refusal() -> Result<()> {
    for vip in [VIP, VIP_IPV6] {
        let mut pair = Pair::new(&World::default())?;
        let connection = Connection::open(&mut pair, vip)?;
        // Whoever made up the SYN made up this as well.
        connection.request(&mut pair, "ACK", &connection.from_client(flags::ACK))?;
        let mut reset = connection.from_backend(flags::RST);
        reset.sequence = 5001;
        connection.reply(&mut pair, "RST", &reset)?;
        connection.establish(&mut pair)?;
        let is_same = |port| {
            let other = Connection::open_from(&mut pair, (connection.client.0, port), vip);
            other.is_ok_and(|other| other.backend == connection.backend)
        };
        ensure!((20_000..20_050).any(is_same), "it is spared");
        pair.compare_tables()?;
    }
    Ok(())
}

#[test]
fn another_backend_is_found_however_few_slots_it_has() -> Result<()> {
    for backends in [2, 3] {
        let mut world = World::default();
        let (_, service) = world.services.iter().find(|(vip, _)| *vip == VIP).expect("a service");
        let members = service.ring.members() as usize;
        world.ring[members] = backends;
        // All slots are of one.
        let start = service.ring.offset() as usize;
        world.ring[start..members].fill(BACKENDS[0]);
        let mut pair = Pair::new(&world)?;
        let mut tried = Vec::new();
        for number in 1..=backends {
            let connection = Connection::open(&mut pair, VIP)?;
            tried.push(connection.backend);
            if number < backends {
                pair.expect("", &refusal(&connection).build(), Reason::RefusalWithheld)?;
            } else {
                connection.establish(&mut pair)?;
            }
        }
        let different: BTreeSet<u32> = tried.iter().copied().collect();
        ensure!(different.len() == backends as usize, "{tried:?}");
        for port in 20_000..20_020 {
            let other = Connection::open_from(&mut pair, (CLIENT.0, port), VIP)?;
            ensure!(tried.last() == Some(&other.backend), "{tried:?} {other:?}");
        }
        pair.compare_tables()?;
    }
    Ok(())
}

#[test]
fn an_unreachable_backend_is_left_with_the_next_syn() -> Result<()> {
    for vip in [VIP, VIP_IPV6] {
        for established in [false, true] {
            let mut pair = Pair::new(&World::default())?;
            let connection = Connection::open(&mut pair, vip)?;
            if established {
                connection.establish(&mut pair)?;
            }
            let to = backend_address(connection.backend);
            let quoted = Segment::syn(connection.nat, to).build()[14..].to_vec();
            let mut message = Message::too_big(to.0, connection.nat.0, 0, &quoted);
            // Port unreachable.
            (message.kind, message.code) = if vip.0.is_ipv4() { (3, 3) } else { (1, 4) };
            message.source_mac = backend_mac(connection.backend);
            let wanted = if established { Reason::IcmpError } else { Reason::RefusalWithheld };
            // One to somebody else is not about what was sent by us.
            let mut stray = Message::too_big(to.0, vip.0, 0, &quoted);
            (stray.kind, stray.code, stray.source_mac) =
                (message.kind, message.code, message.source_mac);
            pair.expect("to another", &stray.build(), Reason::OtherProtocol)?;
            pair.expect("unreachable", &message.build(), wanted)?;
            if !established {
                let second = Connection::open(&mut pair, vip)?;
                ensure!(second.backend != connection.backend, "{second:?}");
                second.establish(&mut pair)?;
            }
            pair.compare_tables()?;
        }
    }
    Ok(())
}

#[test]
fn by_direct_return_a_backend_is_left_with_the_second_syn_that_is_sent_again() -> Result<()> {
    let (_, vip, _) = OTHER_FORWARDINGS[1];
    let host = Host::new(&World::default().with_twins());
    let station = |outcome: &Outcome| outcome.frame[..6].to_vec();
    let first = syn_at(&host, vip, 0);
    for milliseconds in [100, 1000] {
        let again = syn_at(&host, vip, milliseconds);
        ensure!(again.reason == Reason::ToBackend && station(&again) == station(&first));
    }
    let again = syn_at(&host, vip, 3000);
    ensure!(again.reason == Reason::Opened && station(&again) != station(&first), "{again:?}");
    Ok(())
}

#[test]
fn the_client_of_a_backend_that_is_down_is_told_by_a_reset() -> Result<()> {
    let direct = OTHER_FORWARDINGS.iter().filter(|(forwarding, ..)| *forwarding == Forwarding::Dsr);
    for vip in [VIP, VIP_IPV6].into_iter().chain(direct.map(|(_, vip, _)| *vip)) {
        let mut pair = Pair::new(&World::default())?;
        let client = client_of(vip.0);
        let syn = Segment::syn(client, vip).build();
        pair.expect("SYN", &syn, Reason::Opened)?;
        let mut ack = Segment::syn(client, vip).with_flags(flags::ACK);
        (ack.sequence, ack.acknowledgement) = (1001, 5001);
        if [VIP, VIP_IPV6].contains(&vip) {
            Connection::again(&mut pair, client, vip)?.establish(&mut pair)?;
        } else {
            pair.expect("ACK", &ack.build(), Reason::ToBackend)?;
        }
        for index in 1..=pair.host.world.backends.len() as u32 {
            pair.change_backend(index, |backend| backend.fate = Fate::Reset)?;
        }
        for _ in 0..2 {
            let outcome = pair.expect("data", &ack.build(), Reason::BackendDown)?;
            demand_reset(&outcome.frame, &ack)?;
        }
        let mut flooded = ack.clone();
        flooded.destination_mac[5] = 0x99;
        pair.expect("for another station", &flooded.build(), Reason::OtherStation)?;
        let fin = ack.clone().with_flags(flags::ACK | flags::FIN).build();
        pair.expect("FIN", &fin, Reason::BackendDown)?;
        pair.expect("RST", &ack.with_flags(flags::RST).build(), Reason::NoBackend)?;
        pair.compare_tables()?;
    }
    Ok(())
}

#[test]
fn a_flow_that_moves_is_forgotten_and_a_kept_one_goes_on() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let connection = Connection::open(&mut pair, VIP)?;
    connection.establish(&mut pair)?;
    pair.change_backend(connection.backend, |backend| {
        (backend.fate, backend.takes_new_flows) = (Fate::Keep, 0);
    })?;
    connection.request(&mut pair, "kept", &connection.from_client(flags::ACK))?;
    pair.change_backend(connection.backend, |backend| backend.fate = Fate::Move)?;
    pair.expect("moved", &connection.from_client(flags::ACK).build(), Reason::NoFlow)?;
    ensure!(pair.host.flows(Table::Established).is_empty());

    let question = Segment::udp(CLIENT, VIP).build();
    pair.change_backend(connection.backend, |backend| backend.fate = Fate::Keep)?;
    let before = receiver(&pair.expect("a question", &question, Reason::Opened)?);
    pair.change_backend(before, |backend| backend.fate = Fate::Reset)?;
    pair.hand_slots(before, before % 3 + 1)?;
    let after = receiver(&pair.expect("a question again", &question, Reason::Opened)?);
    ensure!(before != after, "{before}");
    pair.compare_tables()
}
