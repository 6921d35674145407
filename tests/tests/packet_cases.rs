//! Described packets, each through the host's build and the loaded program: the same bytes, action
//! and reason, and those that the description wants.

use std::net::Ipv4Addr;

use anyhow::Result;
use lb_common::datapath::Reason;
use lb_tests::{
    frame::{Tcp, flags},
    pair::Pair,
    world::{CLIENT, EMPTY_VIP, NAT_SOURCE, OTHER_FORWARDINGS, UNRESOLVED_VIP, VIP, World},
};

type Case = (&'static str, Vec<u8>, Reason);

/// A SYN to the service with something changed.
fn syn(change: impl FnOnce(&mut Tcp)) -> Vec<u8> {
    let mut segment = Tcp::syn(CLIENT, VIP);
    change(&mut segment);
    segment.build()
}

fn cut(mut frame: Vec<u8>, length: usize) -> Vec<u8> {
    frame.truncate(length);
    frame
}

fn with_ether_type(ether_type: u16) -> Vec<u8> {
    let mut frame = syn(|_| {});
    frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
    frame
}

/// One frame each, to tables without flows.
fn cases() -> Vec<Case> {
    use Reason::*;
    let ssh = (NAT_SOURCE, 22);
    let check_reply = |port| Tcp::syn((Ipv4Addr::new(10, 77, 0, 101), 8080), (NAT_SOURCE, port));
    let mut cases: Vec<Case> = vec![
        ("a SYN to the service", syn(|_| {}), Opened),
        ("a SYN with ECN set up (RFC 3168)", syn(|s| s.flags = flags::SYN | 0xc0), Opened),
        ("a SYN with TCP options", syn(|s| s.tcp_options = vec![2, 4, 5, 180, 1, 3, 3, 7]), Opened),
        ("a SYN with 40 bytes of TCP options", syn(|s| s.tcp_options = vec![1; 40]), Opened),
        ("a SYN with payload (TCP Fast Open)", syn(|s| s.payload = vec![7; 100]), Opened),
        ("a SYN with 4 bytes of IP options", syn(|s| s.ip_options = vec![1, 1, 1, 0]), Opened),
        ("a SYN with 40 bytes of IP options", syn(|s| s.ip_options = vec![1; 40]), Opened),
        (
            "a SYN with both options",
            syn(|s| {
                s.ip_options = vec![0x94, 4, 0, 0];
                s.tcp_options = vec![1; 12];
            }),
            Opened,
        ),
        ("a SYN padded to the shortest Ethernet frame", syn(|s| s.trailer = vec![0; 6]), Opened),
        ("a SYN with a long trailer", syn(|s| s.trailer = vec![0xaa; 1000]), Opened),
        ("a SYN without the don't-fragment bit", syn(|s| s.fragment = 0), Opened),
        ("a SYN with the reserved bit set (RFC 3514)", syn(|s| s.fragment = 0x8000), Opened),
        ("a SYN with a type of service", syn(|s| s.service = 0xb8), Opened),
        ("a SYN with its last hop but one", syn(|s| s.time_to_live = 2), Opened),
        ("a SYN as long as the MTU", syn(|s| s.payload = vec![0; 1460]), Opened),
        ("a SYN with a wrong TCP checksum", syn(|s| s.tcp_checksum_error = 1), Opened),
        ("an odd number of bytes", syn(|s| s.payload = vec![1, 2, 3]), Opened),
        ("ARP", with_ether_type(0x0806), NotIpv4),
        ("IPv6", with_ether_type(0x86dd), NotIpv4),
        ("LLDP", with_ether_type(0x88cc), NotIpv4),
        ("an IEEE 802.3 length for a type", with_ether_type(0x0040), NotIpv4),
        (
            "no more than an Ethernet header of another type",
            cut(with_ether_type(0x0806), 14),
            NotIpv4,
        ),
        ("a VLAN tag", syn(|s| s.tags = vec![(0x8100, 100)]), VlanTagged),
        ("two VLAN tags", syn(|s| s.tags = vec![(0x88a8, 5), (0x8100, 100)]), VlanTagged),
        ("UDP to the service's address and port", syn(|s| s.protocol = 17), NotTcp),
        ("ICMP to the service's address", syn(|s| s.protocol = 1), NotTcp),
        ("VRRP", syn(|s| s.protocol = 112), NotTcp),
        ("an empty frame", Vec::new(), ShortFrame),
        ("13 bytes", cut(syn(|_| {}), 13), ShortFrame),
        ("nothing behind the Ethernet header", cut(syn(|_| {}), 14), ShortFrame),
        ("one byte less than an IP header", cut(syn(|_| {}), 33), ShortFrame),
        ("IP version 0", syn(|s| s.version = 0), BadIpHeader),
        ("IP version 5", syn(|s| s.version = 5), BadIpHeader),
        ("IP version 6 with IPv4's type", syn(|s| s.version = 6), BadIpHeader),
        ("an IP header of 16 bytes", syn(|s| s.header_length_error = -1), BadIpHeader),
        ("an IP header of no bytes", syn(|s| s.header_length_error = -5), BadIpHeader),
        (
            "an IP header longer than the frame",
            cut(syn(|s| s.header_length_error = 10), 40),
            BadIpLength,
        ),
        ("a datagram longer than the frame", syn(|s| s.length_error = 1), BadIpLength),
        ("a datagram of 65,535 bytes", syn(|s| s.length_error = -41), BadIpLength),
        ("a datagram shorter than its header", syn(|s| s.length_error = -21), BadIpLength),
        ("a datagram of no bytes", syn(|s| s.length_error = -40), BadIpLength),
        ("a frame cut within the TCP header", cut(syn(|_| {}), 53), BadIpLength),
        ("a datagram that ends within the TCP header", syn(|s| s.length_error = -1), BadTcpHeader),
        ("a datagram that ends with the IP header", syn(|s| s.length_error = -20), BadTcpHeader),
        ("a TCP header of 16 bytes", syn(|s| s.data_offset_error = -1), BadTcpHeader),
        ("a TCP header of no bytes", syn(|s| s.data_offset_error = -5), BadTcpHeader),
        ("a TCP header longer than the segment", syn(|s| s.data_offset_error = 1), BadTcpHeader),
        ("a later fragment", syn(|s| s.fragment = 0x0001), LaterFragment),
        ("a later fragment, not the last", syn(|s| s.fragment = 0x2010), LaterFragment),
        (
            "a SYN to another station's hardware address",
            syn(|s| s.destination_mac[5] = 0x99),
            OtherStation,
        ),
        ("a SYN to all stations", syn(|s| s.destination_mac = [0xff; 6]), OtherStation),
        ("SSH to this host", Tcp::syn(CLIENT, ssh).build(), NoService),
        (
            "SSH to this host, under way",
            Tcp::syn(CLIENT, ssh).with_flags(flags::ACK).build(),
            NoService,
        ),
        ("the service's address, another port", Tcp::syn(CLIENT, (VIP.0, 22)).build(), NoService),
        ("the service's port, another address", Tcp::syn(CLIENT, (ssh.0, 8080)).build(), NoService),
        (
            "a backend's answer to a health check",
            check_reply(45_678).with_flags(0x12).build(),
            NoService,
        ),
        (
            "a backend's segment to a port of NAT without a flow",
            check_reply(2000).with_flags(0x10).build(),
            NoService,
        ),
        ("an ACK without a flow", syn(|s| s.flags = flags::ACK), NoFlow),
        ("a FIN without a flow", syn(|s| s.flags = flags::FIN | flags::ACK), NoFlow),
        ("a RST without a flow", syn(|s| s.flags = flags::RST), NoFlow),
        ("a SYN-ACK to the service", syn(|s| s.flags = flags::SYN | flags::ACK), NoFlow),
        ("a service without backends", Tcp::syn(CLIENT, EMPTY_VIP).build(), NoBackend),
        ("a first fragment", syn(|s| s.fragment = 0x2000), Fragment),
        ("a wrong IP checksum", syn(|s| s.ip_checksum_error = 1), BadIpChecksum),
        (
            "a wrong IP checksum over options",
            syn(|s| {
                s.ip_options = vec![1; 40];
                s.ip_checksum_error = 0x100;
            }),
            BadIpChecksum,
        ),
        ("the last hop", syn(|s| s.time_to_live = 1), TimeToLiveExpired),
        ("no hop", syn(|s| s.time_to_live = 0), TimeToLiveExpired),
        ("a datagram longer than the MTU", syn(|s| s.payload = vec![0; 1461]), TooBig),
        (
            "a datagram that is too long within an outer header",
            Tcp { payload: vec![0; 1441], ..Tcp::syn(CLIENT, OTHER_FORWARDINGS[2].1) }.build(),
            NeedsFragmentation,
        ),
        ("SYN and FIN", syn(|s| s.flags = flags::SYN | flags::FIN), InvalidFlags),
        ("SYN and RST", syn(|s| s.flags = flags::SYN | flags::RST), InvalidFlags),
        ("no flags", syn(|s| s.flags = 0), InvalidFlags),
        ("PSH alone", syn(|s| s.flags = flags::PSH), InvalidFlags),
        ("all flags", syn(|s| s.flags = 0xff), InvalidFlags),
        ("from the service's own address (LAND)", syn(|s| s.source = VIP.0), InvalidSource),
        ("from a group's hardware address", syn(|s| s.source_mac = [0xff; 6]), InvalidSource),
        ("an unresolved backend", Tcp::syn(CLIENT, UNRESOLVED_VIP).build(), NextHopUnknown),
    ];
    for source in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255]] {
        cases.push((
            "from an impossible address",
            syn(|s| s.source = source.into()),
            InvalidSource,
        ));
    }
    cases
}

#[test]
fn single_frames() -> Result<()> {
    for (what, frame, reason) in cases() {
        let mut pair = Pair::new(&World::default())?;
        pair.expect(what, &frame, reason)?;
        pair.compare_tables()?;
    }
    Ok(())
}

#[test]
fn every_reason_has_a_case() {
    // What can't be brought about by packets alone.
    let without =
        [Reason::PortCollision, Reason::TablesIncomplete, Reason::NoEgress, Reason::NoHeadroom];
    // What needs more than one frame: see connections.rs and forwarding.rs.
    let scenarios = [
        Reason::ToBackend,
        Reason::ToClient,
        Reason::NatPortsExhausted,
        Reason::TupleInUse,
        Reason::FlowTableFull,
    ];
    for reason in Reason::ALL {
        let has_case = cases().iter().any(|(_, _, wanted)| wanted == reason);
        let elsewhere = without.contains(reason) || scenarios.contains(reason);
        assert!(has_case != elsewhere, "{reason:?}");
    }
}
