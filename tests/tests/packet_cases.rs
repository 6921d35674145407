//! Described packets, each through the host's build and the loaded program: the same bytes, action
//! and reason, and those that the description wants.

use std::net::IpAddr;

use anyhow::Result;
use lb_common::datapath::Reason;
use lb_tests::{
    frame::{Segment, flags},
    pair::Pair,
    world::{
        BOUNDED_VIP, CLIENT, CLIENT_IPV6, DOUBLE_TAGS, EMPTY_VIP, LEAST_VIP, NAT_SOURCE,
        NAT_SOURCE_IPV6, OTHER_FORWARDINGS, SILENT_VIP, Socket, TAGS, TURN_VIP, UNRESOLVED_VIP,
        VIP, VIP_IPV6, World, backend_address, client_of,
    },
};

type Case = (&'static str, Vec<u8>, Reason);

/// A SYN to the service with something changed.
fn syn(change: impl FnOnce(&mut Segment)) -> Vec<u8> {
    let mut segment = Segment::syn(CLIENT, VIP);
    change(&mut segment);
    segment.build()
}

/// The same to a service of direct return.
fn direct(change: impl FnOnce(&mut Segment)) -> Vec<u8> {
    let (_, vip, _) = OTHER_FORWARDINGS[2];
    let mut segment = Segment::syn(CLIENT, vip);
    change(&mut segment);
    segment.build()
}

/// The same over IPv6.
fn syn_ipv6(change: impl FnOnce(&mut Segment)) -> Vec<u8> {
    let mut segment = Segment::syn(CLIENT_IPV6, VIP_IPV6);
    change(&mut segment);
    segment.build()
}

/// A UDP datagram from the client of the service's family, with something changed.
fn udp(service: Socket, change: impl FnOnce(&mut Segment)) -> Vec<u8> {
    let mut datagram = Segment::udp(client_of(service.0), service);
    change(&mut datagram);
    datagram.build()
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
    let check_reply = |port| Segment::syn(backend_address(1), (NAT_SOURCE, port));
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
        ("a SYN with a wrong TCP checksum", syn(|s| s.transport_checksum_error = 1), Opened),
        ("an odd number of bytes", syn(|s| s.payload = vec![1, 2, 3]), Opened),
        ("ARP", with_ether_type(0x0806), NotIp),
        ("LLDP", with_ether_type(0x88cc), NotIp),
        ("an IEEE 802.3 length for a type", with_ether_type(0x0040), NotIp),
        (
            "no more than an Ethernet header of another type",
            cut(with_ether_type(0x0806), 14),
            NotIp,
        ),
        ("a VLAN tag of ours", syn(|s| s.tags = TAGS.to_vec()), Opened),
        ("two VLAN tags of ours", syn(|s| s.tags = DOUBLE_TAGS.to_vec()), Opened),
        ("a tag that is only a priority", syn(|s| s.tags = vec![(0x8100, 0xa000)]), Opened),
        ("a priority before a VLAN", syn(|s| s.tags = vec![(0x8100, 0), TAGS[0]]), Opened),
        ("another VLAN's tag", syn(|s| s.tags = vec![(0x8100, 101)]), OtherStation),
        ("a service tag of our VLAN's number", syn(|s| s.tags = vec![(0x88a8, 100)]), OtherStation),
        ("the outer tag alone", syn(|s| s.tags = vec![DOUBLE_TAGS[0]]), OtherStation),
        ("tags in the wrong order", syn(|s| s.tags = vec![TAGS[0], DOUBLE_TAGS[0]]), OtherStation),
        ("three VLAN tags", syn(|s| s.tags = vec![TAGS[0]; 3]), VlanTagged),
        ("a tag and nothing behind it", cut(syn(|s| s.tags = TAGS.to_vec()), 16), ShortFrame),
        ("half a second tag", cut(syn(|s| s.tags = DOUBLE_TAGS.to_vec()), 19), ShortFrame),
        ("half a tag", cut(syn(|s| s.tags = TAGS.to_vec()), 15), ShortFrame),
        ("a tag and a cut IP header", cut(syn(|s| s.tags = TAGS.to_vec()), 30), ShortFrame),
        (
            "a tag and a wrong IP version",
            syn(|s| (s.tags, s.version) = (TAGS.to_vec(), 5)),
            BadIpHeader,
        ),
        (
            "a tag and an ACK without a flow",
            syn(|s| (s.tags, s.flags) = (DOUBLE_TAGS.to_vec(), flags::ACK)),
            NoFlow,
        ),
        ("IPv4 with IPv6's type", with_ether_type(0x86dd), BadIpHeader),
        ("ICMP to the service's address", syn(|s| s.protocol = 1), OtherProtocol),
        ("VRRP", syn(|s| s.protocol = 112), OtherProtocol),
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
        ("SSH to this host", Segment::syn(CLIENT, ssh).build(), NoService),
        (
            "SSH to this host, under way",
            Segment::syn(CLIENT, ssh).with_flags(flags::ACK).build(),
            NoService,
        ),
        (
            "the service's address, another port",
            Segment::syn(CLIENT, (VIP.0, 22)).build(),
            NoService,
        ),
        (
            "the service's port, another address",
            Segment::syn(CLIENT, (ssh.0, 8080)).build(),
            NoService,
        ),
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
        (
            "by direct return, a connection that isn't known",
            direct(|s| s.flags = flags::ACK),
            Adopted,
        ),
        ("by direct return, its end", direct(|s| s.flags = flags::ACK | flags::FIN), Adopted),
        ("by direct return, its reset", direct(|s| s.flags = flags::RST), Adopted),
        (
            "by direct return, no client's answer",
            direct(|s| s.flags = flags::SYN | flags::ACK),
            NoFlow,
        ),
        (
            "by direct return, from an impossible address",
            direct(|s| (s.flags, s.source) = (flags::ACK, [127, 0, 0, 1].into())),
            InvalidSource,
        ),
        ("a service without backends", Segment::syn(CLIENT, EMPTY_VIP).build(), NoBackend),
        ("a connection whose turn it is", Segment::syn(CLIENT, TURN_VIP).build(), Opened),
        ("a connection to the least", Segment::syn(CLIENT, LEAST_VIP).build(), Opened),
        ("a connection to one within bounds", Segment::syn(CLIENT, BOUNDED_VIP).build(), Opened),
        (
            "none whose turn it could be",
            Segment::syn(CLIENT, TURN_VIP).with_flags(flags::ACK).build(),
            NoFlow,
        ),
        ("one that tells nobody", Segment::syn(CLIENT, SILENT_VIP).build(), AllDown),
        ("UDP to one that tells nobody", udp(SILENT_VIP, |_| {}), AllDown),
        ("a first fragment", syn(|s| s.fragment = 0x2000), Opened),
        (
            "a first fragment that ends within the TCP header",
            syn(|s| (s.fragment, s.length_error) = (0x2000, -12)),
            BadTcpHeader,
        ),
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
            Segment { payload: vec![0; 1441], ..Segment::syn(CLIENT, OTHER_FORWARDINGS[2].1) }
                .build(),
            NeedsFragmentation,
        ),
        ("SYN and FIN", syn(|s| s.flags = flags::SYN | flags::FIN), InvalidFlags),
        ("SYN and RST", syn(|s| s.flags = flags::SYN | flags::RST), InvalidFlags),
        ("no flags", syn(|s| s.flags = 0), InvalidFlags),
        ("PSH alone", syn(|s| s.flags = flags::PSH), InvalidFlags),
        ("all flags", syn(|s| s.flags = 0xff), InvalidFlags),
        ("from the service's own address (LAND)", syn(|s| s.source = VIP.0), InvalidSource),
        ("from a group's hardware address", syn(|s| s.source_mac = [0xff; 6]), InvalidSource),
        ("an unresolved backend", Segment::syn(CLIENT, UNRESOLVED_VIP).build(), NextHopUnknown),
    ];
    cases.extend(udp_cases());
    cases.extend(ipv6_cases());
    for source in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255]] {
        cases.push((
            "from an impossible address",
            syn(|s| s.source = source.into()),
            InvalidSource,
        ));
    }
    cases
}

/// Single UDP datagrams.
fn udp_cases() -> Vec<Case> {
    use Reason::*;
    vec![
        ("UDP to the service", udp(VIP, |_| {}), Opened),
        ("UDP without a checksum", udp(VIP, |d| d.lacks_checksum = true), Opened),
        ("UDP with a wrong checksum", udp(VIP, |d| d.transport_checksum_error = 1), Opened),
        ("UDP of no bytes", udp(VIP, |d| d.payload.clear()), Opened),
        ("UDP with options behind it (RFC 9868)", udp(VIP, |d| d.udp_length_error = -4), Opened),
        ("UDP longer than its datagram", udp(VIP, |d| d.udp_length_error = 1), BadUdpHeader),
        (
            "UDP of 7 bytes",
            udp(VIP, |d| (d.payload, d.udp_length_error) = (vec![], -1)),
            BadUdpHeader,
        ),
        (
            "UDP whose header is cut off",
            udp(VIP, |d| (d.payload, d.length_error) = (vec![], -1)),
            BadUdpHeader,
        ),
        ("UDP to another port", udp((VIP.0, 53), |_| {}), NoService),
        ("UDP to a service without backends", udp(EMPTY_VIP, |_| {}), NoBackend),
        (
            "a first fragment of UDP",
            udp(VIP, |d| (d.fragment, d.udp_length_error) = (0x2000, 2000)),
            Opened,
        ),
        ("UDP with its last hop", udp(VIP, |d| d.time_to_live = 1), TimeToLiveExpired),
        ("UDP from the service's own address", udp(VIP, |d| d.source = VIP.0), InvalidSource),
    ]
}

/// Single datagrams of IPv6.
fn ipv6_cases() -> Vec<Case> {
    use Reason::*;
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const SECURITY: u8 = 50;
    const DESTINATION: u8 = 60;
    let options = |kind| (kind, vec![0, 0, 1, 0, 0, 0, 0, 0]);
    let fragment = |offset_and_more: u16| {
        let [high, low] = offset_and_more.to_be_bytes();
        (FRAGMENT, vec![0, 0, high, low, 1, 2, 3, 4])
    };
    let with = |extensions: Vec<(u8, Vec<u8>)>| syn_ipv6(|s| s.extensions = extensions);
    let longest = (DESTINATION, [vec![0, 255, 1, 254], vec![0; 2044]].concat());
    let mut cases = vec![
        ("IPv6: a SYN", syn_ipv6(|_| {}), Opened),
        ("IPv6: UDP", udp(VIP_IPV6, |_| {}), Opened),
        ("IPv6: a traffic class", syn_ipv6(|s| s.service = 0xb9), Opened),
        ("IPv6: a wrong TCP checksum", syn_ipv6(|s| s.transport_checksum_error = 1), Opened),
        ("IPv6: a trailer", syn_ipv6(|s| s.trailer = vec![0xaa; 100]), Opened),
        ("IPv6: hop-by-hop options", with(vec![options(HOP_BY_HOP)]), Opened),
        ("IPv6: a route that is at its end", with(vec![options(ROUTING)]), Opened),
        ("IPv6: an atomic fragment (RFC 6946)", with(vec![fragment(0)]), Opened),
        (
            "IPv6: as many extension headers as there should ever be",
            with(
                [HOP_BY_HOP, DESTINATION, ROUTING, DESTINATION, DESTINATION].map(options).to_vec(),
            ),
            Opened,
        ),
        ("IPv6: more of them", with(vec![options(DESTINATION); 6]), OtherProtocol),
        (
            "IPv6: a route that goes on",
            with(vec![(ROUTING, vec![0, 0, 0, 1, 0, 0, 0, 0])]),
            OtherProtocol,
        ),
        ("IPv6: encrypted", with(vec![options(SECURITY)]), OtherProtocol),
        ("IPv6: ICMPv6", syn_ipv6(|s| s.protocol = 58), OtherProtocol),
        ("IPv6: the longest extension header", with(vec![longest]), TooBig),
        ("IPv6: a first fragment", with(vec![fragment(1)]), Opened),
        ("IPv6: a later fragment", with(vec![fragment(8)]), LaterFragment),
        (
            "IPv6: an extension header longer than the datagram",
            with(vec![(DESTINATION, vec![0, 20, 1, 4, 0, 0, 0, 0])]),
            BadIpLength,
        ),
        (
            "IPv6: an extension header that is cut off",
            syn_ipv6(|s| (s.extensions, s.length_error) = (vec![options(DESTINATION)], -24)),
            BadIpLength,
        ),
        ("IPv6: version 4", syn_ipv6(|s| s.version = 4), BadIpHeader),
        ("IPv6: a datagram longer than the frame", syn_ipv6(|s| s.length_error = 1), BadIpLength),
        ("IPv6: a datagram of a header alone", syn_ipv6(|s| s.length_error = -20), BadTcpHeader),
        ("IPv6: one byte less than a header", cut(syn_ipv6(|_| {}), 53), ShortFrame),
        ("IPv6: UDP without a checksum", udp(VIP_IPV6, |d| d.lacks_checksum = true), NoChecksum),
        ("IPv6: the last hop", syn_ipv6(|s| s.time_to_live = 1), TimeToLiveExpired),
        ("IPv6: longer than the MTU", syn_ipv6(|s| s.payload = vec![0; 1441]), TooBig),
        ("IPv6: to this host", Segment::syn(CLIENT_IPV6, (NAT_SOURCE_IPV6, 22)).build(), NoService),
        ("IPv6: an ACK without a flow", syn_ipv6(|s| s.flags = flags::ACK), NoFlow),
    ];
    for source in ["::", "::1", "ff02::1", "::ffff:192.0.2.1"] {
        let source: IpAddr = source.parse().expect("an address");
        let frame = syn_ipv6(|s| s.source = source);
        cases.push(("IPv6: from an impossible address", frame, InvalidSource));
    }
    cases
}

#[test]
fn single_frames() -> Result<()> {
    let mut pair = Pair::new(&World::default().with_vlans())?;
    for (what, frame, reason) in cases() {
        pair.expect(what, &frame, reason)?;
        pair.compare_tables()?;
        pair.reset()?;
    }
    Ok(())
}

#[test]
fn every_reason_has_a_case() {
    // What can't be brought about by packets alone.
    let without =
        [Reason::PortCollision, Reason::TablesIncomplete, Reason::NoEgress, Reason::NoHeadroom];
    // What needs more than one frame: see connections.rs, refusals.rs, access.rs, forwarding.rs, errors.rs and
    // fragments.rs.
    let scenarios = [
        Reason::ToBackend,
        Reason::ToClient,
        Reason::IcmpError,
        Reason::Fragment,
        Reason::NatPortsExhausted,
        Reason::TupleInUse,
        Reason::FlowTableFull,
        Reason::EmbryonicTableFull,
        Reason::BackendDown,
        Reason::RefusalWithheld,
        Reason::AccessDenied,
        Reason::RateLimited,
    ];
    for reason in Reason::ALL {
        let has_case = cases().iter().any(|(_, _, wanted)| wanted == reason);
        let elsewhere = without.contains(reason) || scenarios.contains(reason);
        assert!(has_case != elsewhere, "{reason:?}");
    }
}
