//! Fragmented datagrams, through the host's build and the loaded program, over both address families.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use lb_common::{
    abi::{Moment, Tick},
    datapath::Reason,
};
use lb_tests::{
    frame::{Segment, flags},
    pair::Pair,
    seen::{self, Seen},
    world::{
        OTHER_FORWARDINGS, Socket, VIP, VIP_IPV6, World, backend_address, backend_mac, client_of,
    },
};

/// Bytes in a fragment of a datagram, less its network header.
const PART: usize = 1200;

/// A datagram or segment of three parts.
fn long(from: Socket, to: Socket, is_udp: bool) -> Segment {
    let mut segment = if is_udp { Segment::udp(from, to) } else { Segment::syn(from, to) };
    segment.payload = (0..3000).map(|byte| byte as u8).collect();
    segment.fragment = 0;
    segment
}

/// What there is behind the network headers of all parts together, as they left, with their hardware
/// addresses.
fn sent(frames: &[Vec<u8>]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let part = |frame: &Vec<u8>| {
        let (_, inner) = seen::decapsulate(frame)?;
        let header = if inner[14] >> 4 == 4 { 34 } else { 14 + 40 + 8 };
        Ok((frame[..12].to_vec(), inner[header..].to_vec()))
    };
    frames.iter().map(part).collect()
}

#[test]
fn later_fragments_follow_the_first_in_both_directions_in_every_mode() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for (forwarding, vip, backend) in OTHER_FORWARDINGS {
        for is_udp in [false, true] {
            pair.reset()?;
            let what = format!("{} {vip:?}, UDP: {is_udp}", forwarding.name());
            let request = long(client_of(vip.0), vip, is_udp);
            let mut frames = Vec::new();
            let parts = request.fragments(PART);
            ensure!(parts.len() == 3, "{what}: {} parts", parts.len());
            for (part, reason) in
                parts.iter().zip([Reason::Opened, Reason::Fragment, Reason::Fragment])
            {
                frames.push(pair.expect(&what, part, reason)?.frame);
            }
            let went = sent(&frames)?;
            ensure!(went.iter().all(|(macs, _)| macs[..6] == backend_mac(backend)), "{what}");
            let whole: Vec<u8> = went.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
            ensure!(whole.ends_with(&request.payload), "{what}: something else arrived");
            let counted = pair.host.counters.borrow()[1][&backend];
            let bytes: usize = parts.iter().map(|part| part.len() - 14).sum();
            ensure!(counted.packets == 3 && counted.bytes == bytes as u64, "{what}: {counted:?}");

            if forwarding.sees_replies() {
                let mut reply = long(backend_address(backend), client_of(vip.0), is_udp);
                reply.flags = flags::SYN | flags::ACK;
                let reasons = [Reason::ToClient, Reason::Fragment, Reason::Fragment];
                for (part, reason) in reply.fragments(PART).iter().zip(reasons) {
                    let outcome = pair.expect(&what, part, reason)?;
                    ensure!(outcome.frame[..6] == [2, 0, 0, 0, 0, 1], "{what}: {outcome:02x?}");
                }
            }
            pair.compare_tables()?;
        }
    }
    Ok(())
}

#[test]
fn what_arrives_before_the_first_is_left_to_the_host_and_the_rest_follows() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for vip in [VIP, VIP_IPV6] {
        pair.reset()?;
        let parts = long(client_of(vip.0), vip, true).fragments(PART);
        let [first, second, last] = &parts[..] else { anyhow::bail!("{} parts", parts.len()) };
        pair.expect("the last, first", last, Reason::LaterFragment)?;
        pair.expect("the first", first, Reason::Opened)?;
        let backend = pair.expect("the second", second, Reason::Fragment)?.frame[..6].to_vec();
        let again = pair.expect("the last, again", last, Reason::Fragment)?;
        ensure!(again.frame[..6] == backend, "to another backend");
    }
    Ok(())
}

#[test]
fn only_fragments_of_the_same_datagram_follow() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for vip in [VIP, VIP_IPV6] {
        pair.reset()?;
        let datagram = long(client_of(vip.0), vip, true);
        let second = |change: &dyn Fn(&mut Segment)| -> Result<Vec<u8>> {
            let mut other = datagram.clone();
            change(&mut other);
            other.fragments(PART).into_iter().nth(1).context("a second part")
        };
        pair.expect("the first", &datagram.fragments(PART)[0], Reason::Opened)?;
        let near = if vip == VIP { "198.51.100.8" } else { "2001:db8:5151::8" };
        let near: IpAddr = near.parse()?;
        let others: [(&str, Vec<u8>); 3] = [
            ("of another datagram", second(&|part| part.identification += 1)?),
            ("from another client", second(&|part| part.source = near)?),
            ("to another address", second(&|part| part.destination = near)?),
        ];
        for (what, frame) in &others {
            pair.expect(what, frame, Reason::LaterFragment)?;
        }
        // What identifies a datagram of IPv6 does so for all protocols.
        let reason = if vip == VIP { Reason::LaterFragment } else { Reason::Fragment };
        pair.expect("of another protocol", &second(&|part| part.protocol = 6)?, reason)?;
        let elsewhere = second(&|part| part.destination_mac[5] = 0x99)?;
        pair.expect("to another station", &elsewhere, Reason::OtherStation)?;
        let last_hop = second(&|part| part.time_to_live = 1)?;
        pair.expect("with its last hop", &last_hop, Reason::TimeToLiveExpired)?;
        pair.expect("the real one", &second(&|_| {})?, Reason::Fragment)?;
        pair.compare_tables()?;
    }
    Ok(())
}

#[test]
fn a_first_fragment_that_went_nowhere_is_not_followed() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let mut ssh = long(client_of(VIP.0), (VIP.0, 22), false);
    let parts = ssh.fragments(PART);
    pair.expect("the host's own", &parts[0], Reason::NoService)?;
    pair.expect("the host's own, later", &parts[1], Reason::LaterFragment)?;
    (ssh.destination_port, ssh.identification, ssh.time_to_live) = (VIP.1, 7, 1);
    pair.expect("the last hop", &ssh.fragments(PART)[0], Reason::TimeToLiveExpired)?;
    ssh.time_to_live = 64;
    pair.expect("behind it", &ssh.fragments(PART)[1], Reason::LaterFragment).map(drop)
}

#[test]
fn a_first_fragment_is_followed_for_a_minute() -> Result<()> {
    const MINUTE: u64 = 60_000_000_000;
    // The kernel's clock can't be set.
    let host = lb_tests::host::Host::new(&World::default());
    let parts = long(client_of(VIP.0), VIP, true).fragments(PART);
    let start = Moment::from_nanoseconds(1000 * MINUTE);
    host.set_now(start);
    ensure!(host.run(&parts[0]).reason == Reason::Opened);
    host.set_now(Moment::from_nanoseconds(1001 * MINUTE - 2 * Tick::NANOSECONDS));
    ensure!(host.run(&parts[1]).reason == Reason::Fragment);
    host.set_now(Moment::from_nanoseconds(1001 * MINUTE + 2 * Tick::NANOSECONDS));
    ensure!(host.run(&parts[1]).reason == Reason::LaterFragment);
    Ok(())
}

#[test]
fn a_later_fragment_that_fits_nowhere_is_not_answered() -> Result<()> {
    let (_, vip, _) = OTHER_FORWARDINGS[2];
    let mut pair = Pair::new(&World::default())?;
    let datagram = long(client_of(vip.0), vip, true);
    let parts = datagram.fragments(1480);
    pair.expect("the first", &parts[0], Reason::NeedsFragmentation)?;
    pair.expect("a later one, unknown", &parts[1], Reason::LaterFragment)?;
    let short = datagram.fragments(800);
    pair.expect("a first that fits", &short[0], Reason::Opened)?;
    pair.expect("a later one that doesn't", &parts[1], Reason::TooBig)?;
    pair.expect("one that does", &short[1], Reason::Fragment)?;
    let seen = Seen::new(
        &pair
            .expect("whole", &Segment::udp(client_of(vip.0), vip).build(), Reason::ToBackend)?
            .frame,
    );
    ensure!(seen.time_to_live == 64, "{seen:?}");
    pair.compare_tables()
}
