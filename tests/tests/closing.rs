//! How connections end, and what may come afterwards: each way a test of its own, through the host's build
//! and the loaded program.

use anyhow::{Result, ensure};
use lb_common::{
    abi::{FlowState, Moment},
    datapath::{LEAST_TRACED_AGE, Reason, Table},
};
use lb_tests::{
    connection::Connection,
    frame::{Segment, flags},
    host::Host,
    pair::Pair,
    seen::{self, Seen},
    world::{CLIENT, VIP, VIP_IPV6, World, client_of},
};

const FIN: u8 = flags::ACK | flags::FIN;

fn states(pair: &Pair) -> Vec<FlowState> {
    pair.host.flows(Table::Established).values().map(|flow| flow.state).collect()
}

fn established(vip: (std::net::IpAddr, u16)) -> Result<(Pair, Connection)> {
    let mut pair = Pair::new(&World::default())?;
    let connection = Connection::open(&mut pair, vip)?;
    connection.establish(&mut pair)?;
    Ok((pair, connection))
}

#[test]
fn a_half_closed_connection_carries_the_other_direction() -> Result<()> {
    for vip in [VIP, VIP_IPV6] {
        let (mut pair, connection) = established(vip)?;
        connection.request(&mut pair, "FIN", &connection.from_client(FIN))?;
        for _ in 0..20 {
            connection.reply(&mut pair, "data", &connection.from_backend(flags::ACK))?;
            connection.request(&mut pair, "ACK", &connection.from_client(flags::ACK))?;
        }
        ensure!(states(&pair) == [FlowState::CLOSING; 2]);
        connection.reply(&mut pair, "FIN", &connection.last_from_backend(FIN))?;
        ensure!(states(&pair) == [FlowState::CLOSED; 2]);
        pair.compare_tables()?;
    }
    Ok(())
}

#[test]
fn both_ends_may_close_at_once() -> Result<()> {
    let (mut pair, connection) = established(VIP)?;
    connection.request(&mut pair, "FIN", &connection.from_client(FIN))?;
    connection.reply(&mut pair, "FIN", &connection.from_backend(FIN))?;
    connection.request(&mut pair, "last ACK", &connection.from_client(flags::ACK))?;
    connection.reply(&mut pair, "last ACK", &connection.last_from_backend(flags::ACK))?;
    ensure!(states(&pair) == [FlowState::CLOSED; 2]);
    pair.compare_tables()
}

#[test]
fn a_reset_closes_and_the_port_opens_another_connection() -> Result<()> {
    let (mut pair, connection) = established(VIP)?;
    connection.reply(&mut pair, "RST", &connection.from_backend(flags::RST))?;
    ensure!(states(&pair) == [FlowState::CLOSED; 2]);
    connection.request(&mut pair, "SYN", &Segment::syn(CLIENT, VIP))?;
    connection.reply(&mut pair, "SYN-ACK", &connection.syn_ack())?;
    ensure!(states(&pair) == [FlowState::ESTABLISHED; 2]);
    pair.compare_tables()
}

#[test]
fn a_port_that_is_used_again_in_time_wait_starts_afresh_by_another_port() -> Result<()> {
    for vip in [VIP, VIP_IPV6] {
        let (mut pair, first) = established(vip)?;
        first.close(&mut pair)?;
        let second = Connection::open(&mut pair, vip)?;
        ensure!(second.nat != first.nat, "{second:?}");
        let late = first.from_backend(flags::ACK).build();
        pair.expect("the old one's last", &late, Reason::NoService)?;
        second.establish(&mut pair)?;
        ensure!(pair.host.flows(Table::Established).len() == 2);
        pair.compare_tables()?;
    }
    Ok(())
}

#[test]
fn a_connection_that_was_idle_for_longer_than_its_timeout_goes_on_until_it_is_swept() -> Result<()>
{
    let (mut pair, connection) = established(VIP)?;
    let later = Moment::from_nanoseconds(u64::MAX / 4);
    pair.host.set_now(later);
    connection.request(&mut pair, "keep-alive", &connection.from_client(flags::ACK))?;
    connection.reply(&mut pair, "keep-alive", &connection.from_backend(flags::ACK))?;
    ensure!(states(&pair) == [FlowState::ESTABLISHED; 2]);
    Ok(())
}

/// A segment with timestamps before which there are so many options that mean nothing.
fn with_timestamps(mut segment: Segment, value: u32, echo: u32, lead: usize) -> Vec<u8> {
    segment.tcp_options = [1].repeat(lead);
    segment.tcp_options.extend([8, 10]);
    segment.tcp_options.extend(value.to_be_bytes());
    segment.tcp_options.extend(echo.to_be_bytes());
    segment.tcp_options.resize(segment.tcp_options.len().next_multiple_of(4), 0);
    segment.build()
}

#[test]
fn timestamps_follow_one_clock_to_the_backend_and_the_clients_own_back() -> Result<()> {
    for (vip, lead) in [(VIP, 0), (VIP, 2), (VIP, 3), (VIP_IPV6, 2), (VIP_IPV6, 5)] {
        let mut pair = Pair::new(&World::default())?;
        let said = |frame: &[u8]| seen::without_timestamps(frame).0.expect("timestamps");
        let mut clocks = Vec::new();
        for (port, own) in [(20_000, 7), (20_001, 0x8000_0000), (20_002, u32::MAX)] {
            let client = (client_of(vip.0).0, port);
            let syn = with_timestamps(Segment::syn(client, vip), own, 0, lead);
            let outcome = pair.expect("SYN", &syn, Reason::Opened)?;
            let [clock, _] = said(&outcome.frame);
            clocks.push(clock);
            let again = Connection::again(&mut pair, client, vip)?;
            let answer = with_timestamps(again.syn_ack(), 99, clock, lead);
            let outcome = pair.expect("SYN-ACK", &answer, Reason::ToClient)?;
            ensure!(said(&outcome.frame) == [99, own], "{lead}: {:?}", said(&outcome.frame));
            for step in [1, 1000, 2000, 3000] {
                if step == 2000 {
                    // From here on by traces.
                    pair.age_flows(LEAST_TRACED_AGE)?;
                }
                let later = own.wrapping_add(step);
                let data = with_timestamps(again.ack(), later, 99, lead);
                let outcome = pair.expect("data", &data, Reason::ToBackend)?;
                ensure!(said(&outcome.frame) == [clock.wrapping_add(step), 99], "{lead}");
                let echo = clock.wrapping_add(step);
                let reply = with_timestamps(again.from_backend(flags::ACK), 100, echo, lead);
                let outcome = pair.expect("reply", &reply, Reason::ToClient)?;
                ensure!(said(&outcome.frame) == [100, later], "{lead}");
            }
        }
        // Milliseconds apart, whatever the clients' clocks say.
        let apart = clocks.windows(2).map(|pair| pair[1].wrapping_sub(pair[0]));
        ensure!(apart.clone().all(|apart| apart < 10_000), "{clocks:?}");
        pair.compare_tables()?;
    }
    Ok(())
}

#[test]
fn a_segment_cut_short_within_its_timestamps_is_left_as_it_is() -> Result<()> {
    let host = Host::new(&World::default());
    let mut syn = Segment::syn(CLIENT, VIP);
    syn.tcp_options = vec![1, 1, 8, 10];
    let outcome = host.run(&syn.build());
    ensure!(outcome.reason == Reason::Opened);
    let (before, after) = (Seen::new(&syn.build()), Seen::new(&outcome.frame));
    ensure!(before.rest == after.rest, "{after:?}");
    Ok(())
}
