//! What needs no look at the table of flows: packets by direct return of flows that were looked up lately, and packets to
//! ports where nothing is.

use anyhow::{Context, Result, ensure};
use lb_common::datapath::{RECENT_TICKS, Reason};
use lb_tests::{
    connection::Connection,
    frame::{Segment, flags},
    pair::Pair,
    seen::Seen,
    world::{OTHER_FORWARDINGS, Socket, VIP, World, backend_mac, client_of},
};

/// Services whose replies don't pass through us, each with a backend.
fn direct() -> impl Iterator<Item = (Socket, u32)> {
    let direct =
        OTHER_FORWARDINGS.into_iter().filter(|(forwarding, ..)| !forwarding.sees_replies());
    direct.map(|(_, vip, backend)| (vip, backend))
}

fn segment(client: Socket, vip: Socket, bits: u8) -> Vec<u8> {
    let mut segment = Segment::syn(client, vip).with_flags(bits);
    if bits != flags::SYN {
        (segment.sequence, segment.acknowledgement) = (1001, 5001);
    }
    segment.build()
}

/// Sends a segment of a client's, and returns the station that it goes to.
fn send(pair: &mut Pair, client: Socket, vip: Socket, bits: u8, reason: Reason) -> Result<[u8; 6]> {
    let outcome = pair.expect("a segment", &segment(client, vip, bits), reason)?;
    Ok(Seen::new(&outcome.frame).destination_mac)
}

#[test]
fn flows_stay_where_they_are_through_changes_of_their_slots() -> Result<()> {
    let mut pair = Pair::new(&World::default().with_twins())?;
    for (number, (vip, first)) in (0..).zip(direct()) {
        let client = client_of(vip.0);
        let mut homes = Vec::new();
        for port in 0..8 {
            let client = (client.0, 20_000 + 100 * number + port);
            let home = send(&mut pair, client, vip, flags::SYN, Reason::Opened)?;
            // The first one completes the handshake, the next one is looked up, and then it is noted.
            for _ in 0..4 {
                let to = send(&mut pair, client, vip, flags::ACK, Reason::ToBackend)?;
                ensure!(to == home, "{vip:?}");
            }
            homes.push((client, home));
        }
        let twins: Vec<u32> = (1..=pair.host.world.backends.len() as u32)
            .filter(|index| homes.iter().any(|(_, home)| *home == backend_mac(*index)))
            .collect();
        ensure!(twins.contains(&first) && twins.len() == 2, "{vip:?}: {twins:?}");
        for (from, to) in [(twins[0], twins[1]), (twins[1], twins[0]), (twins[0], twins[1])] {
            pair.hand_slots(from, to)?;
            for bits in [flags::ACK, flags::ACK | flags::PSH, flags::ACK] {
                for (client, home) in &homes {
                    let to = send(&mut pair, *client, vip, bits, Reason::ToBackend)?;
                    ensure!(to == *home, "{vip:?}: {client:?} moved");
                }
            }
            let newcomer = (client.0, 30_000 + 10 * number + to as u16 % 10);
            let station = send(&mut pair, newcomer, vip, flags::SYN, Reason::Opened);
            // The same one as before, in the third round.
            if let Ok(station) = station {
                ensure!(station == backend_mac(to), "{vip:?}: a new one goes to {station:?}");
            }
        }
        // What ends one is followed, and a reset is taken back.
        for bits in [flags::RST, flags::ACK, flags::FIN | flags::ACK, flags::ACK] {
            for (client, home) in &homes {
                let to = send(&mut pair, *client, vip, bits, Reason::ToBackend)?;
                ensure!(to == *home, "{vip:?}: {client:?} moved at its end");
            }
        }
    }
    pair.compare_tables()
}

#[test]
fn steady_packets_by_direct_return_need_no_entry_in_the_table() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let epoch = || lb_userspace::dataplane::now().number() / RECENT_TICKS;
    for (vip, backend) in direct() {
        let client = client_of(vip.0);
        loop {
            pair.reset()?;
            let start = epoch();
            send(&mut pair, client, vip, flags::SYN, Reason::Opened)?;
            for _ in 0..2 {
                send(&mut pair, client, vip, flags::ACK, Reason::ToBackend)?;
            }
            pair.host.forget_flows();
            pair.kernel.forget_flows()?;
            let outcome = pair.run(&segment(client, vip, flags::ACK))?;
            let end = pair.run(&segment(client, vip, flags::FIN | flags::ACK))?;
            // Notes are forgotten every few seconds.
            if epoch() != start {
                continue;
            }
            ensure!(outcome.reason == Reason::ToBackend, "{vip:?}: {outcome:?}");
            ensure!(Seen::new(&outcome.frame).destination_mac == backend_mac(backend));
            ensure!(end.reason == Reason::Adopted, "{vip:?}: {end:?}");
            break;
        }
    }
    Ok(())
}

#[test]
fn where_nothing_is_nothing_is_looked_up_and_where_something_may_be_it_is() -> Result<()> {
    let mut world = World::default();
    world.settings.replies_anywhere = 0;
    let mut pair = Pair::new(&world)?;
    let client = client_of(VIP.0);
    for port in [22, 443, 8080, 9999] {
        let elsewhere = (lb_tests::world::NAT_SOURCE, port);
        pair.expect("not ours", &segment(client, elsewhere, flags::SYN), Reason::NoService)?;
    }
    let connection = Connection::open(&mut pair, VIP).context("a reply comes to a port of ours")?;
    connection.establish(&mut pair)?;
    connection.close(&mut pair)?;
    pair.compare_tables()
}
