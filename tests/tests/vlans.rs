//! VLAN tags, packet by packet, through the host's build and the loaded program.

use anyhow::{Result, ensure};
use lb_common::{abi::LocalMac, datapath::Reason};
use lb_tests::{
    frame::{Segment, flags},
    icmp::Message,
    pair::Pair,
    seen::{self, Seen},
    world::{
        self, DOUBLE_TAGS, OTHER_FORWARDINGS, TAGS, World, backend_address, backend_mac, client_of,
    },
};

type Tags = &'static [(u16, u16)];

/// Of the client's link and of the backend's.
const LINKS: [(Tags, Tags); 8] = [
    (&TAGS, &[]),
    (&[], &TAGS),
    (&TAGS, &TAGS),
    (&DOUBLE_TAGS, &[]),
    (&[], &DOUBLE_TAGS),
    (&DOUBLE_TAGS, &TAGS),
    (&TAGS, &DOUBLE_TAGS),
    (&DOUBLE_TAGS, &DOUBLE_TAGS),
];

/// Both sorts of VLAN are ours.
fn new_pair() -> Result<Pair> {
    let mut world = World::default();
    for tags in [&TAGS[..], &DOUBLE_TAGS] {
        let (untagged, longest) = world.local_macs[0];
        world.local_macs.push((LocalMac { vlans: world::vlans(tags), ..untagged }, longest));
    }
    Pair::new(&world)
}

/// Starts anew, with a backend in the VLANs that tags name.
fn put(pair: &mut Pair, backend: u32, tags: &[(u16, u16)]) -> Result<()> {
    pair.change_backend(backend, |backend| backend.next_hop.vlans = world::vlans(tags))?;
    pair.reset()
}

#[test]
fn tags_are_those_of_where_the_frame_goes() -> Result<()> {
    let mut pair = new_pair()?;
    for (client_tags, backend_tags) in LINKS {
        for (forwarding, vip, backend) in OTHER_FORWARDINGS {
            let what =
                format!("{} {vip:?}, {client_tags:04x?} to {backend_tags:04x?}", forwarding.name());
            put(&mut pair, backend, backend_tags)?;
            let client = client_of(vip.0);
            let mut syn = Segment::syn(client, vip);
            syn.tags = client_tags.to_vec();
            let sent = pair.expect(&what, &syn.build(), Reason::Opened)?;
            let (tags, frame) = seen::untag(&sent.frame);
            ensure!(tags == backend_tags, "{what}: {tags:04x?}");
            ensure!(frame[..6] == backend_mac(backend), "{what}: {frame:02x?}");
            if forwarding.sees_replies() {
                let peer = Seen::new(&frame).source;
                let mut reply = Segment::syn(backend_address(backend), peer);
                reply.flags |= flags::ACK;
                (reply.source_mac, reply.tags) = (backend_mac(backend), backend_tags.to_vec());
                let sent = pair.expect(&what, &reply.build(), Reason::ToClient)?;
                let (tags, _) = seen::untag(&sent.frame);
                ensure!(tags == client_tags, "{what}: the reply has {tags:04x?}");
            }
            pair.compare_tables()?;
        }
    }
    Ok(())
}

#[test]
fn a_client_that_moves_to_another_vlan_is_answered_there() -> Result<()> {
    let (_, vip, backend) = OTHER_FORWARDINGS[0];
    let mut pair = new_pair()?;
    let client = client_of(vip.0);
    pair.expect("SYN", &Segment::syn(client, vip).build(), Reason::Opened)?;
    let reply = Segment::syn(backend_address(backend), client).with_flags(flags::SYN | flags::ACK);
    for moved_to in [&[][..], &TAGS, &DOUBLE_TAGS, &[]] {
        let mut again = Segment::syn(client, vip);
        again.tags = moved_to.to_vec();
        pair.expect("SYN again", &again.build(), Reason::ToBackend)?;
        let sent = pair.expect("SYN-ACK", &reply.build(), Reason::ToClient)?;
        ensure!(seen::untag(&sent.frame).0 == moved_to, "{:02x?}", sent.frame);
    }
    let mut elsewhere = Segment::syn(client, vip);
    elsewhere.tags = vec![(0x8100, 101)];
    pair.expect("from a VLAN that isn't ours", &elsewhere.build(), Reason::OtherStation)?;
    pair.compare_tables()
}

#[test]
fn a_priority_is_kept() -> Result<()> {
    let mut pair = new_pair()?;
    for (from, to, wanted) in [
        (vec![(0x8100, 0xa064)], &TAGS[..], vec![(0x8100, 0xa064)]),
        (vec![(0x8100, 0x6000)], &TAGS, vec![(0x8100, 0x6064)]),
        (vec![(0x88a8, 0xe005), (0x8100, 0x2064)], &TAGS, vec![(0x8100, 0xe064)]),
        (vec![(0x8100, 0x4064)], &DOUBLE_TAGS, vec![(0x88a8, 0x4005), (0x8100, 0x4064)]),
        (vec![(0x8100, 0xa064)], &[], vec![]),
    ] {
        let (_, vip, backend) = OTHER_FORWARDINGS[0];
        put(&mut pair, backend, to)?;
        let mut syn = Segment::syn(client_of(vip.0), vip);
        syn.tags = from;
        let sent = pair.expect("SYN", &syn.build(), Reason::Opened)?;
        let (tags, _) = seen::untag(&sent.frame);
        ensure!(tags == wanted, "{tags:04x?}");
    }
    Ok(())
}

#[test]
fn icmp_goes_where_it_should_with_tags() -> Result<()> {
    let mut pair = new_pair()?;
    for (forwarding, vip, backend) in OTHER_FORWARDINGS {
        put(&mut pair, backend, &DOUBLE_TAGS)?;
        let what = format!("{} {vip:?}", forwarding.name());
        let client = client_of(vip.0);
        let mut syn = Segment::syn(client, vip);
        syn.tags = TAGS.to_vec();
        if forwarding.encapsulates() {
            let mut long = syn.clone();
            long.payload = vec![0; if vip.0.is_ipv4() { 1460 } else { 1440 }];
            let answer = pair.expect(&what, &long.build(), Reason::NeedsFragmentation)?;
            let (tags, frame) = seen::untag(&answer.frame);
            ensure!(tags == TAGS, "{what}: the answer has {tags:04x?}");
            Message::read(&frame)?;
        }
        pair.expect(&what, &syn.build(), Reason::Opened)?;
        let about = Segment::syn(vip, client).build();
        let error = Message::too_big(client.0, vip.0, 1400, &about[14..]).build();
        let tagged = [&error[..12], &[0x81, 0, 0, 100], &error[12..]].concat();
        let sent = pair.expect(&what, &tagged, Reason::IcmpError)?;
        let (tags, _) = seen::untag(&sent.frame);
        ensure!(tags == DOUBLE_TAGS, "{what}: the error has {tags:04x?}");
        pair.compare_tables()?;
    }
    Ok(())
}
