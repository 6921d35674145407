//! Who may connect, how often, and to whom they keep: through the host's build and the loaded program.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Result, ensure};
use lb_common::{
    abi::{Access, Moment},
    datapath::Reason,
};
use lb_tests::{
    connection::Connection,
    frame::{Segment, flags},
    host::Host,
    pair::Pair,
    world::{
        CLIENT, CLIENT_IPV6, NAT_VIP, OTHER_FORWARDINGS, Socket, VIP, VIP_IPV6, World, client_of,
    },
};

/// A world in which lists say of networks who may connect to two services.
fn with_lists(networks: &[(&str, Access)]) -> World {
    let mut world = World::default();
    for (text, access) in networks {
        world.access.push((7, text.parse().expect("a network"), *access));
    }
    for (vip, service) in &mut world.services {
        if [VIP, VIP_IPV6].contains(vip) {
            service.access = 7;
        }
    }
    world
}

fn from(text: &str, vip: Socket) -> Segment {
    Segment::syn((text.parse().expect("an address"), 40_000), vip)
}

#[test]
fn the_longest_prefix_decides_who_may_connect() -> Result<()> {
    let mut pair = Pair::new(&with_lists(&[
        ("0.0.0.0/0", Access::Denied),
        ("198.51.100.0/24", Access::Allowed),
        ("198.51.100.64/26", Access::Denied),
        ("198.51.100.77/32", Access::Allowed),
        ("::/0", Access::Allowed),
        ("2001:db8:5151::/48", Access::Denied),
        ("2001:db8:5151:1::/64", Access::Allowed),
    ]))?;
    for (source, vip, reason) in [
        ("192.0.2.1", VIP, Reason::AccessDenied),
        ("198.51.100.1", VIP, Reason::Opened),
        ("198.51.100.64", VIP, Reason::AccessDenied),
        ("198.51.100.77", VIP, Reason::Opened),
        ("198.51.100.127", VIP, Reason::AccessDenied),
        ("198.51.100.128", VIP, Reason::Opened),
        ("192.0.2.1", NAT_VIP, Reason::Opened),
        ("2001:db8::1", VIP_IPV6, Reason::Opened),
        ("2001:db8:5151::1", VIP_IPV6, Reason::AccessDenied),
        ("2001:db8:5151:1::1", VIP_IPV6, Reason::Opened),
    ] {
        pair.expect(source, &from(source, vip).build(), reason)?;
    }
    pair.compare_tables()
}

#[test]
fn a_port_that_is_used_again_after_a_reset_opens_as_little_as_any_other() -> Result<()> {
    let mut world = with_lists(&[("0.0.0.0/0", Access::Allowed)]);
    world.settings.syn_interval = 1_000_000_000;
    let mut pair = Pair::new(&world)?;
    let connection = Connection::open(&mut pair, VIP)?;
    connection.establish(&mut pair)?;
    connection.request(&mut pair, "RST", &connection.from_client(flags::RST))?;
    pair.expect("SYN", &Segment::syn(CLIENT, VIP).build(), Reason::RateLimited)?;

    let mut pair = Pair::new(&with_lists(&[("0.0.0.0/0", Access::Allowed)]))?;
    let connection = Connection::open(&mut pair, VIP)?;
    connection.establish(&mut pair)?;
    connection.request(&mut pair, "RST", &connection.from_client(flags::RST))?;
    pair.host.world.access[0].2 = Access::Denied;
    pair.kernel.write_access(&pair.host.world)?;
    pair.expect("SYN", &Segment::syn(CLIENT, VIP).build(), Reason::AccessDenied)?;
    connection.request(&mut pair, "what may go on", &connection.from_client(flags::ACK))?;
    pair.compare_tables()
}

#[test]
fn a_source_may_open_so_many_connections_at_once_and_others_are_unharmed() -> Result<()> {
    let mut world = World::default();
    // Ten a second.
    world.settings.syn_interval = 100_000_000;
    let host = Host::new(&world);
    let open = |client: Socket, vip: Socket| host.run(&Segment::syn(client, vip).build()).reason;
    let burst = |address: IpAddr, vip: Socket, first: u16| {
        (0..30).filter(|port| open((address, first + port), vip) == Reason::Opened).count()
    };
    host.set_now(Moment::from_nanoseconds(1_000_000_000_000));
    ensure!(burst(CLIENT.0, VIP, 20_000) == 10);
    ensure!(open((CLIENT.0, 30_000), VIP) == Reason::RateLimited);
    ensure!(burst("198.51.100.8".parse()?, VIP, 20_000) == 10, "another source");
    host.set_now(Moment::from_nanoseconds(1_000_500_000_000));
    ensure!(burst(CLIENT.0, VIP, 21_000) == 5, "half a second later");

    // Of IPv6, a network counts as one source.
    let IpAddr::V6(client) = CLIENT_IPV6.0 else { anyhow::bail!("IPv6") };
    ensure!(burst(client.into(), VIP_IPV6, 20_000) == 10);
    let neighbour = Ipv6Addr::from_bits(client.to_bits() ^ 0xffff);
    ensure!(open((neighbour.into(), 20_000), VIP_IPV6) == Reason::RateLimited);
    let stranger = Ipv6Addr::from_bits(client.to_bits() ^ (1 << 64));
    ensure!(open((stranger.into(), 20_000), VIP_IPV6) == Reason::Opened);
    Ok(())
}

#[test]
fn by_direct_return_what_is_known_of_a_flow_lets_no_syn_pass_the_limit() -> Result<()> {
    // Ten a second.
    const MOST: u16 = 10;
    let mut world = World::default();
    world.settings.syn_interval = 100_000_000;
    for (forwarding, vip, _) in OTHER_FORWARDINGS {
        // None, one that is adopted, and the one after that, with which the flow is taken to be its backend's as well.
        for acknowledgements in 0..3 {
            let host = Host::new(&world);
            host.set_now(Moment::from_nanoseconds(1_000_000_000_000));
            let mut passed = 0;
            for port in 20_000..20_000 + 5 * MOST {
                let syn = Segment::syn((client_of(vip.0).0, port), vip);
                for _ in 0..acknowledgements {
                    host.run(&syn.clone().with_flags(flags::ACK).build());
                }
                match host.run(&syn.build()).reason {
                    Reason::Opened | Reason::ToBackend => passed += 1,
                    reason => ensure!(reason == Reason::RateLimited, "{forwarding:?}: {reason:?}"),
                }
            }
            ensure!(passed == MOST, "{forwarding:?}, after {acknowledgements}: {passed}");
        }
    }
    Ok(())
}

#[test]
fn a_syn_that_is_sent_again_counts_as_another_and_datagrams_do_not() -> Result<()> {
    let mut world = World::default();
    world.settings.syn_interval = 1_000_000_000;
    let mut pair = Pair::new(&world)?;
    for vip in [VIP, VIP_IPV6] {
        pair.within_one_tick(|pair| {
            let connection = Connection::open(pair, vip)?;
            let syn = Segment::syn(connection.client, vip).build();
            pair.expect("again", &syn, Reason::RateLimited)?;
            connection.establish(pair)?;
            pair.expect("once established", &syn, Reason::RateLimited)?;
            for port in 20_000..20_010 {
                let datagram = Segment::udp((connection.client.0, port), vip).build();
                pair.expect("a datagram", &datagram, Reason::Opened)?;
            }
            pair.compare_tables()
        })?;
    }
    Ok(())
}

#[test]
fn the_limit_holds_in_the_kernel_as_well_and_what_is_open_goes_on() -> Result<()> {
    let mut world = World::default();
    world.settings.syn_interval = 1_000_000_000;
    let mut pair = Pair::new(&world)?;
    let connection = Connection::open(&mut pair, VIP)?;
    let second = Segment::syn((CLIENT.0, 20_000), VIP).build();
    pair.expect("too soon", &second, Reason::RateLimited)?;
    connection.establish(&mut pair)?;
    connection.request(&mut pair, "data", &connection.from_client(flags::ACK))?;
    pair.compare_tables()
}

/// A world in which the services by full NAT have affinity, for so many ticks.
fn with_affinity(ticks: u32) -> World {
    let mut world = World::default();
    for (vip, service) in &mut world.services {
        if [VIP, VIP_IPV6].contains(vip) {
            service.affinity = ticks;
        }
    }
    for backend in &mut world.backends {
        backend.remembers_clients = 1;
    }
    world
}

#[test]
fn a_client_keeps_its_backend_also_when_the_ring_changes_unless_that_takes_no_more() -> Result<()> {
    for vip in [VIP, VIP_IPV6] {
        let mut pair = Pair::new(&with_affinity(1000))?;
        let client = |port| (client_of(vip.0).0, port);
        let first = Connection::open_from(&mut pair, client(20_000), vip)?;
        for port in 20_001..20_020 {
            let other = Connection::open_from(&mut pair, client(port), vip)?;
            ensure!(other.backend == first.backend, "before it is remembered: {other:?}");
        }
        first.establish(&mut pair)?;
        let backends: &[u32] =
            if vip == VIP { &lb_tests::world::BACKENDS } else { &lb_tests::world::BACKENDS_IPV6 };
        let place = backends.iter().position(|index| *index == first.backend).expect("a backend");
        let elsewhere = backends[(place + 1) % backends.len()];
        pair.hand_slots(first.backend, elsewhere)?;
        pair.change_backend(first.backend, |backend| backend.takes_new_flows = 1)?;
        let second = Connection::open_from(&mut pair, client(21_000), vip)?;
        ensure!(second.backend == first.backend, "{second:?}");
        pair.change_backend(first.backend, |backend| backend.takes_new_flows = 0)?;
        let third = Connection::open_from(&mut pair, client(22_000), vip)?;
        ensure!(third.backend == elsewhere, "{third:?}");
        third.establish(&mut pair)?;
        pair.change_backend(first.backend, |backend| backend.takes_new_flows = 1)?;
        let fourth = Connection::open_from(&mut pair, client(23_000), vip)?;
        ensure!(fourth.backend == elsewhere, "it stays where it is now: {fourth:?}");
        first.request(&mut pair, "the first", &first.from_client(flags::ACK))?;
        pair.compare_tables()?;
    }
    Ok(())
}
