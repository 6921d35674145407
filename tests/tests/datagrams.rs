//! UDP, packet by packet, through the host's build and the loaded program, over both address
//! families.

use anyhow::{Context, Result, ensure};
use lb_common::{
    abi::Forwarding,
    datapath::{Reason, Table},
};
use lb_tests::{
    frame::Segment,
    pair::Pair,
    seen::{self, ChecksumState, Seen},
    world::{
        BACKENDS, BACKENDS_IPV6, OTHER_FORWARDINGS, Socket, VIP, VIP_IPV6, World, backend_address,
        backend_mac, client_of,
    },
};

/// A question from the client of a service's family.
fn question(vip: Socket) -> Segment {
    Segment::udp(client_of(vip.0), vip)
}

/// A backend's answer to whom it saw asking.
fn answer(backend: u32, to: Socket) -> Segment {
    let mut datagram = Segment::udp(backend_address(backend), to);
    datagram.source_mac = backend_mac(backend);
    datagram.payload = b"an answer".to_vec();
    datagram
}

/// Sends a question that opens a flow by full NAT: the backend that got it, and whom that saw.
fn open(pair: &mut Pair, question: &Segment) -> Result<(u32, Socket)> {
    let outcome = pair.expect("a question", &question.build(), Reason::Opened)?;
    let seen = Seen::new(&outcome.frame);
    let mut backends = BACKENDS.into_iter().chain(BACKENDS_IPV6);
    let backend = backends.find(|backend| backend_address(*backend) == seen.destination);
    Ok((backend.context("no backend")?, seen.source))
}

#[test]
fn questions_and_answers_pass_and_both_make_a_flow() -> Result<()> {
    for vip in [VIP, VIP_IPV6] {
        let mut pair = Pair::new(&World::default())?;
        let (backend, nat) = open(&mut pair, &question(vip))?;
        let counted = pair.host.counters.borrow()[1][&backend].new_flows;
        ensure!(counted == 1, "a flow without a handshake begins at once");
        let again = question(vip).build();
        pair.expect("again, before any answer", &again, Reason::ToBackend)?;
        ensure!(pair.host.flows(Table::Established).is_empty());

        let reply = answer(backend, nat).build();
        let outcome = pair.expect("an answer", &reply, Reason::ToClient)?;
        let seen = Seen::new(&outcome.frame);
        ensure!(seen.source == vip && seen.destination == client_of(vip.0), "{seen:?}");
        ensure!(pair.host.flows(Table::Established).is_empty(), "the client may be an invention");
        let outcome = pair.expect("a second question", &again, Reason::ToBackend)?;
        ensure!(Seen::new(&outcome.frame).source == nat, "the same port");
        ensure!(pair.host.flows(Table::Established).len() == 2);
        pair.expect("a second answer", &reply, Reason::ToClient)?;
        ensure!(pair.host.counters.borrow()[1][&backend].new_flows == 1);
        pair.compare_tables()?;
    }
    Ok(())
}

#[test]
fn a_flow_stays_on_its_backend_once_that_has_answered() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let (first, _) = open(&mut pair, &question(VIP))?;
    let other = first % 3 + 1;
    pair.hand_slots(first, other)?;
    let (second, nat) = open(&mut pair, &question(VIP))?;
    ensure!(second == other, "the first one had not answered");
    pair.expect("an answer", &answer(second, nat).build(), Reason::ToClient)?;
    pair.hand_slots(other, first)?;
    for what in ["establishes", "established"] {
        let outcome = pair.expect(what, &question(VIP).build(), Reason::ToBackend)?;
        ensure!(Seen::new(&outcome.frame).destination == backend_address(second), "{what}");
    }
    pair.compare_tables()
}

#[test]
fn no_checksum_stays_none_and_none_becomes_zero() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let mut without = question(VIP);
    without.lacks_checksum = true;
    let (backend, nat) = open(&mut pair, &without)?;
    let mut reply = answer(backend, nat);
    reply.lacks_checksum = true;
    let outcome = pair.expect("an answer without", &reply.build(), Reason::ToClient)?;
    ensure!(Seen::new(&outcome.frame).transport_checksum == ChecksumState::Absent);

    // Every sum that a payload can bring about, so also that which comes out as zero.
    for word in 0..=u16::MAX {
        let mut datagram = question(VIP);
        datagram.payload = word.to_be_bytes().to_vec();
        let outcome = pair.host.run(&datagram.build());
        let seen = Seen::new(&outcome.frame);
        ensure!(seen.transport_checksum == ChecksumState::Right, "{word}: {seen:?}");
    }
    Ok(())
}

#[test]
fn every_forwarding_carries_it_in_both_families() -> Result<()> {
    for (forwarding, vip, backend) in OTHER_FORWARDINGS {
        let what = format!("{} {vip:?}", forwarding.name());
        let mut pair = Pair::new(&World::default())?;
        for reason in [Reason::Opened, Reason::ToBackend, Reason::ToBackend] {
            let outcome = pair.expect(&what, &question(vip).build(), reason)?;
            let (outer, inner) = seen::decapsulate(&outcome.frame)?;
            let seen = Seen::new(&inner);
            ensure!(outer.is_some() == forwarding.encapsulates(), "{what}: {outer:?}");
            ensure!(seen.source == client_of(vip.0), "{what}: {seen:?}");
            let receiver =
                if forwarding == Forwarding::Nat { backend_address(backend) } else { vip };
            ensure!(seen.destination == receiver, "{what}: {seen:?}");
            ensure!(seen.destination_mac == backend_mac(backend), "{what}: {seen:?}");
            if let Some(outer) = outer {
                ensure!(outer.destination == backend_address(backend).0, "{what}: {outer:?}");
            }
            if forwarding.sees_replies() {
                let reply = answer(backend, client_of(vip.0)).build();
                let outcome = pair.expect(&what, &reply, Reason::ToClient)?;
                ensure!(Seen::new(&outcome.frame).source == vip, "{what}");
            }
        }
        let entries = if forwarding.sees_replies() { 2 } else { 1 };
        ensure!(pair.host.flows(Table::Established).len() == entries, "{what}");
        pair.compare_tables()?;
    }
    Ok(())
}

#[test]
fn a_full_table_keeps_nobody_from_asking() -> Result<()> {
    let mut pair = Pair::new(&World { flows: 1, ..World::default() })?;
    for port in 20_000..20_003 {
        let mut datagram = question(VIP);
        datagram.source_port = port;
        let (backend, nat) = open(&mut pair, &datagram)?;
        for _ in 0..3 {
            pair.expect("an answer", &answer(backend, nat).build(), Reason::ToClient)?;
            pair.expect("a question", &datagram.build(), Reason::ToBackend)?;
        }
    }
    ensure!(pair.host.flows(Table::Established).len() == 2, "one flow");
    ensure!(pair.host.flows(Table::Embryonic).len() == 4, "the others go on as they began");
    pair.compare_tables()
}
