//! What a stranger sends in a client's name who knows its address and ports, but no sequence numbers: through the host's
//! build, and the loaded program.

use anyhow::{Result, ensure};
use lb_common::{
    abi::{FlowState, Moment},
    datapath::{Reason, Table},
};
use lb_tests::{
    connection::Connection,
    frame::{Segment, flags},
    pair::Pair,
    world::{OTHER_FORWARDINGS, VIP, VIP_IPV6, World, client_of},
};

#[test]
fn what_others_send_into_a_handshake_ends_it_only_if_the_backend_says_so() -> Result<()> {
    for vip in [VIP, VIP_IPV6] {
        let mut pair = Pair::new(&World::default())?;
        let connection = Connection::open(&mut pair, vip)?;
        let strangers = |pair: &mut Pair| {
            for flags in [flags::RST, flags::RST | flags::ACK, flags::FIN | flags::ACK] {
                let mut segment = connection.from_client(flags);
                (segment.sequence, segment.acknowledgement) = (77, 88);
                connection.request(pair, "a stranger's", &segment)?;
                // To a wrong acknowledgement, a backend that waits for the right one says RST (RFC 9293, 3.10.7.4).
                let mut answer = connection.from_backend(flags::RST);
                answer.sequence = 88;
                connection.reply(pair, "the answer to that", &answer)?;
            }
            Ok::<(), anyhow::Error>(())
        };
        strangers(&mut pair)?;
        connection.reply(&mut pair, "SYN-ACK", &connection.syn_ack())?;
        strangers(&mut pair)?;
        connection.request(&mut pair, "ACK", &connection.ack())?;
        let flows = pair.host.flows(Table::Established);
        ensure!(flows.values().all(|flow| flow.state == FlowState::ESTABLISHED));
        ensure!(flows.len() == 2);
        pair.compare_tables()?;

        let mut pair = Pair::new(&World::default())?;
        let connection = Connection::open(&mut pair, vip)?;
        connection.reply(&mut pair, "SYN-ACK", &connection.syn_ack())?;
        connection.reply(&mut pair, "RST", &connection.from_backend(flags::RST))?;
        ensure!(pair.host.flows(Table::Embryonic).is_empty());
        pair.compare_tables()?;
    }
    Ok(())
}

#[test]
fn they_end_nothing_and_move_nothing() -> Result<()> {
    const FIN: u8 = flags::FIN | flags::ACK;
    const RST: u8 = flags::RST | flags::ACK;
    for vip in [VIP, VIP_IPV6] {
        let mut world = World::default();
        // Whoever gets a port takes somebody's.
        world.settings.nat_port_count = 1;
        let mut pair = Pair::new(&world)?;
        let connection = Connection::open(&mut pair, vip)?;
        connection.establish(&mut pair)?;
        let host = &pair.host;
        let at = |seconds: u64| {
            host.set_now(Moment::from_nanoseconds((1 << 60) + seconds * 1_000_000_000));
        };
        let strangers = || {
            for flags in [FIN, flags::RST, flags::SYN, RST, flags::SYN, flags::SYN] {
                let mut segment = connection.from_client(flags);
                (segment.sequence, segment.acknowledgement) = (1_000_000, 2_000_000);
                let reason = host.run(&segment.build()).reason;
                ensure!(reason == Reason::ToBackend, "{flags:#x}: {reason:?}");
            }
            Ok(())
        };
        let says = |segment: Segment| {
            let reason = host.run(&segment.build()).reason;
            ensure!(reason == Reason::ToClient, "{reason:?}");
            Ok(())
        };
        // The backend answers some of them: not all are worth an answer.
        for start in [0, 10, 20, 30, 60] {
            at(start);
            strangers()?;
            says(connection.from_backend(flags::ACK))?;
            strangers()?;
            for seconds in [1, 3, 7, 9] {
                at(start + seconds);
                strangers()?;
            }
            says(connection.from_backend(flags::ACK))?;
            strangers()?;
        }
        // Half closed by its backend, too; and nobody gets its port.
        says(connection.from_backend(FIN))?;
        strangers()?;
        for port in 30_000..30_020 {
            let reason = host.run(&Segment::syn((connection.client.0, port), vip).build()).reason;
            ensure!(matches!(reason, Reason::Opened | Reason::NatPortsExhausted), "{reason:?}");
        }
        let data = host.run(&connection.from_client(flags::ACK).build()).reason;
        ensure!(data == Reason::ToBackend, "{data:?}");
        says(connection.from_backend(flags::ACK))?;
    }
    Ok(())
}

#[test]
fn by_direct_return_they_move_nothing_either() -> Result<()> {
    let direct = OTHER_FORWARDINGS.iter().filter(|(forwarding, ..)| !forwarding.sees_replies());
    for (forwarding, vip, index) in direct {
        for ending in [flags::FIN | flags::ACK, flags::RST | flags::ACK] {
            let mut pair = Pair::new(&World::default().with_twins())?;
            let syn = Segment::syn(client_of(vip.0), *vip);
            let mut ack = syn.clone().with_flags(flags::ACK);
            ack.sequence = 1001;
            let first = pair.expect("SYN", &syn.build(), Reason::Opened)?;
            pair.expect("ACK", &ack.build(), Reason::ToBackend)?;
            // The ring leads elsewhere by now.
            let twin = World::default().backends.len() as u32
                + 1
                + OTHER_FORWARDINGS.iter().position(|other| other.1 == *vip).unwrap_or(0) as u32;
            for (from, to) in [(*index, twin), (twin, *index)] {
                pair.hand_slots(from, to)?;
                let mut end = ack.clone().with_flags(ending);
                end.sequence = 1_000_000;
                pair.expect("a stranger's", &end.build(), Reason::ToBackend)?;
                let again = pair.expect("a stranger's", &syn.build(), Reason::ToBackend)?;
                ensure!(again.frame[..6] == first.frame[..6], "{forwarding:?} moved");
                let more = pair.expect("data", &ack.build(), Reason::ToBackend)?;
                ensure!(more.frame[..6] == first.frame[..6], "{forwarding:?} moved");
            }
            pair.compare_tables()?;
        }
    }
    Ok(())
}
