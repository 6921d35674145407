//! What SYNs say of how long segments may be, through the host's build and the loaded program.

use anyhow::{Result, ensure};
use lb_common::datapath::Reason;
use lb_tests::{
    frame::{Segment, flags},
    pair::Pair,
    seen::{self, ChecksumState, Seen},
    world::{CLAMPED, OTHER_FORWARDINGS, TAGS, World, backend_address, client_of, vlans},
};

/// Options of a SYN, and where in them the clamped value stands afterwards.
fn options() -> Vec<(&'static str, Vec<u8>, Option<usize>)> {
    let [high, low] = 1460u16.to_be_bytes();
    let size = [2, 4, high, low];
    let after = |before: &[u8]| {
        let mut options = [before, &size].concat();
        options.resize(options.len().next_multiple_of(4), 0);
        options
    };
    let [same_high, same_low] = CLAMPED.to_be_bytes();
    vec![
        ("none", vec![], None),
        ("alone", after(&[]), Some(2)),
        ("at an odd place", after(&[1]), Some(3)),
        ("behind two bytes", after(&[1, 1]), Some(4)),
        ("behind others", after(&[4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 3, 3, 7]), Some(17)),
        ("the last of 40 bytes", after(&[1; 36]), Some(38)),
        (
            "as Linux orders them",
            [&size[..], &[4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7]].concat(),
            Some(2),
        ),
        ("as low as it may be", vec![2, 4, same_high, same_low], None),
        ("lower", vec![2, 4, 2, 24], None),
        ("behind the end", after(&[0, 0, 0, 0]), None),
        ("behind an option without a length", after(&[3, 0, 1, 1]), None),
        ("behind an option that is too long", after(&[3, 60, 1, 1]), None),
        ("with a wrong length", vec![2, 3, high, low], None),
        ("cut off by the header's end", vec![1, 1, 2, 4], None),
    ]
}

#[test]
fn syns_are_clamped_in_both_directions_in_every_mode() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for (forwarding, vip, backend) in OTHER_FORWARDINGS {
        pair.change_backend(backend, |backend| {
            backend.maximum_segment = CLAMPED;
            // The last step is the same as that of tags.
            if backend.port.get() % 2 == 0 {
                backend.next_hop.vlans = vlans(&TAGS);
            }
        })?;
        let client = client_of(vip.0);
        for (what, options, changed) in options() {
            let what = format!("{} {vip:?}, {what}", forwarding.name());
            let wanted = wanted(&options, changed);
            let mut syn = Segment::syn(client, vip);
            syn.tcp_options.clone_from(&options);
            let sent = pair.expect(&what, &syn.build(), Reason::Opened)?;
            let (_, frame) = seen::untag(&sent.frame);
            let (_, inner) = seen::decapsulate(&frame)?;
            check(&what, &inner, &wanted)?;
            if forwarding.sees_replies() {
                let mut reply = Segment::syn(backend_address(backend), Seen::new(&inner).source);
                reply.flags = flags::SYN | flags::ACK;
                reply.tcp_options = options;
                let sent = pair.expect(&what, &reply.build(), Reason::ToClient)?;
                check(&what, &sent.frame, &wanted)?;
            }
            pair.compare_tables()?;
            pair.reset()?;
        }
    }
    Ok(())
}

fn wanted(options: &[u8], changed: Option<usize>) -> Vec<u8> {
    let mut options = options.to_vec();
    if let Some(at) = changed {
        options[at..at + 2].copy_from_slice(&CLAMPED.to_be_bytes());
    }
    options
}

fn check(what: &str, frame: &[u8], options: &[u8]) -> Result<()> {
    ensure!(frame.ends_with(options), "{what}: {frame:02x?}");
    let seen = Seen::new(frame);
    ensure!(seen.transport_checksum == ChecksumState::Right, "{what}: {seen:02x?}");
    Ok(())
}

#[test]
fn only_syns_are_looked_at_and_a_wrong_checksum_stays_wrong() -> Result<()> {
    let (_, vip, backend) = OTHER_FORWARDINGS[0];
    let mut world = World::default();
    world.backends[backend as usize - 1].maximum_segment = CLAMPED;
    let mut pair = Pair::new(&world)?;
    let client = client_of(vip.0);
    let options = vec![2, 4, 5, 180];
    let mut wrong = Segment::syn(client, vip);
    (wrong.transport_checksum_error, wrong.tcp_options) = (7, options.clone());
    let sent = pair.expect("a wrong checksum", &wrong.build(), Reason::Opened)?;
    ensure!(Seen::new(&sent.frame).transport_checksum == ChecksumState::Wrong, "it was mended");
    let mut data = Segment::syn(client, vip).with_flags(flags::ACK);
    data.tcp_options.clone_from(&options);
    let sent = pair.expect("no SYN", &data.build(), Reason::ToBackend)?;
    ensure!(sent.frame.ends_with(&options), "{:02x?}", sent.frame);
    let mut datagram = Segment::udp(client, vip);
    datagram.payload = vec![2; 40];
    let sent = pair.expect("UDP", &datagram.build(), Reason::Opened)?;
    ensure!(sent.frame.ends_with(&datagram.payload), "{:02x?}", sent.frame);
    pair.compare_tables()
}
