//! Described connections, each packet through the host's build and the loaded program: the same
//! bytes, action and reason, the same tables afterwards, and those that the description wants.

use anyhow::{Context, Result, ensure};
use lb_common::{
    abi::FlowState,
    datapath::{Action, NAT_TRIES, Reason, Table},
};
use lb_tests::{
    connection::Connection,
    frame::{Segment, flags},
    pair::Pair,
    seen::{Seen, demand_reset},
    world::{CLIENT, NAT_PORTS, NAT_VIP, OWN_MAC, VIP, VIP_IPV6, World},
};

type Change = fn(&mut Segment);

fn states(pair: &Pair) -> Vec<FlowState> {
    pair.host.flows(Table::Established).values().map(|flow| flow.state).collect()
}

#[test]
fn a_connection_from_syn_to_fin() -> Result<()> {
    for vip in [VIP, VIP_IPV6] {
        let mut pair = Pair::new(&World::default())?;
        let connection = Connection::open(&mut pair, vip)?;
        connection.establish(&mut pair)?;
        ensure!(pair.host.flows(Table::Embryonic).is_empty());
        ensure!(states(&pair) == [FlowState::ESTABLISHED; 2]);
        let (request, answer) = (flags::ACK | flags::PSH, flags::ACK | flags::PSH);
        connection.request(&mut pair, "request", &connection.from_client(request))?;
        connection.reply(&mut pair, "answer", &connection.from_backend(answer))?;
        connection.reply(&mut pair, "FIN", &connection.from_backend(flags::ACK | flags::FIN))?;
        ensure!(states(&pair) == [FlowState::CLOSING; 2]);
        connection.request(&mut pair, "FIN", &connection.from_client(flags::ACK | flags::FIN))?;
        ensure!(states(&pair) == [FlowState::CLOSING; 2], "before the backend says so");
        connection.reply(&mut pair, "last ACK", &connection.last_from_backend(flags::ACK))?;
        ensure!(states(&pair) == [FlowState::CLOSED; 2]);
        pair.compare_tables()?;
    }
    Ok(())
}

#[test]
fn a_wrong_tcp_checksum_stays_wrong_in_both_directions() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let connection = Connection::open(&mut pair, VIP)?;
    connection.establish(&mut pair)?;
    for error in [1, 0x100, 0x8000, 0xfffe] {
        let mut segment = connection.from_client(flags::ACK);
        segment.transport_checksum_error = error;
        connection.request(&mut pair, "wrong checksum", &segment)?;
        let mut segment = connection.from_backend(flags::ACK);
        segment.transport_checksum_error = error;
        connection.reply(&mut pair, "wrong checksum", &segment)?;
    }
    Ok(())
}

#[test]
fn what_is_malformed_within_a_flow_is_counted_and_not_forwarded() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let connection = Connection::open(&mut pair, VIP)?;
    connection.establish(&mut pair)?;
    let changes: [(Change, Reason); 6] = [
        (|segment| segment.ip_checksum_error = 1, Reason::BadIpChecksum),
        (|segment| segment.time_to_live = 1, Reason::TimeToLiveExpired),
        (|segment| segment.payload = vec![0; 1500], Reason::TooBig),
        (|segment| segment.flags = flags::PSH, Reason::InvalidFlags),
        (|segment| segment.length_error = 4, Reason::BadIpLength),
        (|segment| segment.data_offset_error = -1, Reason::BadTcpHeader),
    ];
    for (change, reason) in changes {
        for mut segment in [connection.from_client(flags::ACK), connection.from_backend(flags::ACK)]
        {
            change(&mut segment);
            pair.expect("malformed", &segment.build(), reason)?;
        }
    }
    connection.request(&mut pair, "afterwards", &connection.from_client(flags::ACK))
}

#[test]
fn options_of_every_length_are_forwarded() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let connection = Connection::open(&mut pair, VIP)?;
    connection.establish(&mut pair)?;
    for words in 0..=10 {
        let mut segment = connection.from_client(flags::ACK);
        segment.ip_options = vec![1; words * 4];
        segment.tcp_options = vec![1; 40 - words * 4];
        connection.request(&mut pair, "options", &segment)?;
        let mut segment = connection.from_backend(flags::ACK);
        segment.ip_options = vec![1; words * 4];
        connection.reply(&mut pair, "options", &segment)?;
    }
    Ok(())
}

#[test]
fn a_syn_again_goes_to_the_same_backend_by_the_same_port() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let connection = Connection::open(&mut pair, VIP)?;
    connection.request(&mut pair, "again", &Segment::syn(CLIENT, VIP))?;
    connection.reply(&mut pair, "SYN-ACK", &connection.syn_ack())?;
    connection.request(&mut pair, "again, after the answer", &Segment::syn(CLIENT, VIP))?;
    connection.request(&mut pair, "ACK", &connection.ack())?;
    connection.request(&mut pair, "again, when established", &Segment::syn(CLIENT, VIP))?;
    pair.compare_tables()
}

#[test]
fn a_blind_acknowledgement_establishes_nothing() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let connection = Connection::open(&mut pair, VIP)?;
    connection.request(&mut pair, "before the answer", &connection.ack())?;
    connection.reply(&mut pair, "SYN-ACK", &connection.syn_ack())?;
    for wrong in [-1, -1000, 1 << 16, i32::MAX] {
        let mut guess = connection.ack();
        guess.acknowledgement = guess.acknowledgement.wrapping_add_signed(wrong);
        connection.request(&mut pair, "a wrong guess", &guess)?;
    }
    ensure!(pair.host.flows(Table::Established).is_empty());
    connection.request(&mut pair, "the right one", &connection.ack())?;
    ensure!(pair.host.flows(Table::Established).len() == 2);
    pair.compare_tables()
}

#[test]
fn an_acknowledgement_of_early_data_establishes() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let connection = Connection::open(&mut pair, VIP)?;
    connection.reply(&mut pair, "SYN-ACK", &connection.syn_ack())?;
    connection.reply(&mut pair, "data at once", &connection.from_backend(flags::ACK))?;
    let mut both = connection.from_client(flags::ACK | flags::FIN);
    both.acknowledgement += 14_600;
    connection.request(&mut pair, "ACK of both", &both)?;
    let states = pair.host.flows(Table::Established);
    ensure!(states.len() == 2 && states.values().all(|flow| flow.state == FlowState::CLOSING));
    pair.compare_tables()
}

#[test]
fn a_port_used_again_goes_the_same_way() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let connection = Connection::open(&mut pair, VIP)?;
    connection.establish(&mut pair)?;
    connection.request(&mut pair, "RST", &connection.from_client(flags::RST))?;
    connection.request(&mut pair, "SYN", &Segment::syn(CLIENT, VIP))?;
    ensure!(states(&pair) == [FlowState::CLOSED; 2], "before the backend agrees");
    connection.reply(&mut pair, "SYN-ACK", &connection.syn_ack())?;
    ensure!(states(&pair) == [FlowState::ESTABLISHED; 2]);
    ensure!(pair.host.counters.borrow()[1][&connection.backend].new_flows == 2);
    pair.compare_tables()
}

#[test]
fn a_port_used_again_leaves_a_backend_that_takes_no_more() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let first = Connection::open(&mut pair, VIP)?;
    first.establish(&mut pair)?;
    let other = first.backend % 3 + 1;
    pair.hand_slots(first.backend, other)?;
    first.request(&mut pair, "in use", &first.from_client(flags::ACK))?;
    first.request(&mut pair, "a SYN within it", &Segment::syn(CLIENT, VIP))?;
    first.request(&mut pair, "RST", &first.from_client(flags::RST))?;
    // Anybody may have sent that, and this.
    first.request(&mut pair, "SYN", &Segment::syn(CLIENT, VIP))?;
    first.reply(&mut pair, "challenge", &first.from_backend(flags::ACK))?;
    first.request(&mut pair, "in use", &first.from_client(flags::ACK))?;
    ensure!(states(&pair) == [FlowState::ESTABLISHED; 2]);

    first.reply(&mut pair, "RST", &first.from_backend(flags::RST))?;
    let second = Connection::open(&mut pair, VIP)?;
    ensure!(second.backend == other, "{second:?}");
    second.establish(&mut pair)?;
    pair.expect("to the old one", &first.from_backend(flags::ACK).build(), Reason::NoService)?;
    pair.compare_tables()
}

#[test]
fn a_syn_again_leaves_a_backend_that_has_not_answered_and_takes_no_more() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let first = Connection::open(&mut pair, VIP)?;
    pair.hand_slots(first.backend, first.backend % 3 + 1)?;
    let second = Connection::open(&mut pair, VIP)?;
    ensure!(second.backend != first.backend, "{second:?}");
    pair.expect("too late", &first.syn_ack().build(), Reason::NoService)?;
    second.reply(&mut pair, "SYN-ACK", &second.syn_ack())?;
    pair.hand_slots(second.backend, first.backend)?;
    second.request(&mut pair, "again, after the answer", &Segment::syn(CLIENT, VIP))?;
    second.request(&mut pair, "ACK", &second.ack())?;
    pair.compare_tables()
}

#[test]
fn a_reset_is_taken_back_by_what_its_sender_sends_next() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let connection = Connection::open(&mut pair, VIP)?;
    connection.establish(&mut pair)?;
    connection.request(&mut pair, "forged", &connection.from_client(flags::RST))?;
    connection.reply(&mut pair, "forged", &connection.from_backend(flags::RST | flags::ACK))?;
    ensure!(states(&pair) == [FlowState::CLOSED; 2]);
    connection.request(&mut pair, "the client", &connection.from_client(flags::ACK))?;
    ensure!(states(&pair) == [FlowState::CLOSED; 2]);
    connection.reply(&mut pair, "the backend", &connection.from_backend(flags::ACK))?;
    ensure!(states(&pair) == [FlowState::ESTABLISHED; 2]);
    pair.compare_tables()
}

#[test]
fn replies_follow_a_client_whose_router_changed() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let connection = Connection::open(&mut pair, VIP)?;
    connection.establish(&mut pair)?;
    let mut segment = connection.from_client(flags::ACK);
    segment.source_mac = [2, 0, 0, 0, 9, 9];
    connection.request(&mut pair, "by another router", &segment)?;
    let reply = connection.from_backend(flags::ACK).build();
    let outcome = pair.expect("reply", &reply, Reason::ToClient)?;
    let seen = Seen::new(&outcome.frame);
    ensure!(seen.destination_mac == [2, 0, 0, 0, 9, 9] && seen.source_mac == OWN_MAC, "{seen:?}");

    segment.source_mac = [0x33, 0x33, 0, 0, 0, 1];
    pair.expect("by a group", &segment.build(), Reason::InvalidSource)?;
    segment.source_mac = [2, 0, 0, 0, 9, 7];
    segment.destination_mac = [2, 0, 0, 0, 9, 8];
    pair.expect("flooded to us", &segment.build(), Reason::OtherStation)?;
    pair.compare_tables()
}

#[test]
fn a_service_on_the_address_and_ports_of_nat_works() -> Result<()> {
    ensure!(NAT_PORTS.contains(&u32::from(NAT_VIP.1)));
    let mut pair = Pair::new(&World::default())?;
    let connection = Connection::open(&mut pair, NAT_VIP)?;
    connection.establish(&mut pair)?;
    connection.reply(&mut pair, "answer", &connection.from_backend(flags::ACK))?;
    pair.compare_tables()
}

/// A world in which each backend has so many ports.
fn ports(count: u32) -> World {
    let mut world = World::default();
    world.settings.nat_port_count = count;
    world
}

#[test]
fn no_two_flows_share_a_port_and_at_the_end_of_the_range_new_ones_are_refused() -> Result<()> {
    let mut pair = Pair::new(&ports(NAT_TRIES / 2))?;
    let mut taken = std::collections::HashSet::new();
    let mut refused = 0;
    for port in 20_000..20_100 {
        let client = (CLIENT.0, port);
        let syn = Segment::syn(client, VIP);
        if pair.run(&syn.build())?.reason == Reason::NatPortsExhausted {
            refused += 1;
            continue;
        }
        let connection = Connection::again(&mut pair, client, VIP)?;
        connection.establish(&mut pair)?;
        ensure!(taken.insert((connection.backend, connection.nat)), "shared: {connection:?}");
    }
    ensure!(taken.len() == 3 * NAT_TRIES as usize / 2, "{} taken", taken.len());
    ensure!(refused == 100 - taken.len());
    pair.compare_tables()
}

#[test]
fn half_open_handshakes_keep_nobody_out() -> Result<()> {
    let mut pair = Pair::new(&ports(NAT_TRIES / 2))?;
    let mut flood = Vec::new();
    for port in 20_000..20_100 {
        flood.push(Connection::open_from(&mut pair, (CLIENT.0, port), VIP)?);
    }
    let connection = Connection::open(&mut pair, VIP)?;
    let robbed = flood
        .iter()
        .rfind(|other| other.backend == connection.backend && other.nat == connection.nat);
    let robbed = robbed.context("no port was taken over")?;
    pair.expect("the robbed one", &robbed.from_client(flags::ACK).build(), Reason::NoFlow)?;
    pair.expect("its withdrawal", &robbed.from_client(flags::RST).build(), Reason::NoFlow)?;
    connection.establish(&mut pair)?;
    connection.reply(&mut pair, "answer", &connection.from_backend(flags::ACK))?;
    pair.compare_tables()
}

#[test]
fn a_closed_connection_gives_its_port_away() -> Result<()> {
    let mut pair = Pair::new(&ports(1))?;
    for port in 20_000..20_020 {
        let connection = Connection::open_from(&mut pair, (CLIENT.0, port), VIP)?;
        connection.establish(&mut pair)?;
        connection.close(&mut pair)?;
    }
    let open = pair.host.flows(Table::Established).len();
    ensure!(open <= 2 * 3, "{open} entries of one port for each of three backends");
    pair.compare_tables()
}

#[test]
fn the_verifier_has_room_to_spare() -> Result<()> {
    // Of a million that the verifier is willing to look at.
    const LIMIT: u32 = 350_000;
    let mut pair = Pair::new(&World::default())?;
    let verified = pair.kernel.verified_instructions()?;
    let enough = verified.iter().all(|count| *count < LIMIT);
    ensure!(enough, "{verified:?} instructions of at most {LIMIT}");
    Ok(())
}

#[test]
fn a_full_table_refuses_new_connections_and_keeps_the_old() -> Result<()> {
    const ROOM: u32 = 16;
    let mut pair = Pair::new(&World { flows: ROOM, ..World::default() })?;
    let mut established = Vec::new();
    for port in 20_000..20_000 + ROOM as u16 {
        let connection = Connection::open_from(&mut pair, (CLIENT.0, port), VIP)?;
        connection.establish(&mut pair)?;
        established.push(connection);
    }
    let late = Connection::open(&mut pair, VIP)?;
    late.reply(&mut pair, "SYN-ACK", &late.syn_ack())?;
    let outcome = pair.expect("one too many", &late.ack().build(), Reason::FlowTableFull)?;
    ensure!(outcome.action == Action::Transmit, "{outcome:?}");
    demand_reset(&outcome.frame, &late.ack())?;
    ensure!(pair.host.flows(Table::Embryonic).is_empty());
    // The backend, which says it again, hears of it from the balancer's own stack.
    pair.expect("SYN-ACK", &late.syn_ack().build(), Reason::NoService)?;
    for connection in &established {
        connection.request(&mut pair, "an old one", &connection.from_client(flags::ACK))?;
        connection.reply(&mut pair, "an old one", &connection.from_backend(flags::ACK))?;
    }
    pair.compare_tables()
}
