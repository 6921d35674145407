//! Where replies pass through us, packets of flows that have lasted find their traces, and nothing else does.

use anyhow::{Result, ensure};
use lb_common::{
    abi::{Backend, Forwarding, Station},
    datapath::Reason,
    wire::NetworkU16,
};
use lb_tests::{
    connection::Connection,
    frame::{Segment, flags},
    pair::Pair,
    seen::Seen,
    world::{
        OTHER_FORWARDINGS, Socket, VIP, VIP_IPV6, World, backend_address, backend_mac, client_of,
    },
};

/// Age from which a flow leaves traces, in ticks.
const AGE: u32 = 2;

/// What becomes of a client's packet that belongs to no flow, and of a backend's.
const UNKNOWN: Reason = Reason::NoFlow;
const UNKNOWN_REPLY: Reason = Reason::NoService;

/// Sends a segment in each direction, which both have to arrive.
fn exchange(pair: &mut Pair, connection: &Connection, what: &str) -> Result<()> {
    connection.request(pair, what, &connection.from_client(flags::ACK | flags::PSH))?;
    connection.reply(pair, what, &connection.from_backend(flags::ACK))
}

/// Opens a connection that leaves traces in both directions.
fn lasting(pair: &mut Pair, vip: Socket) -> Result<Connection> {
    let connection = Connection::open(pair, vip)?;
    connection.establish(pair)?;
    pair.age_flows(AGE)?;
    exchange(pair, &connection, "looked up")?;
    Ok(connection)
}

/// Demands of a connection that its packets are known in neither direction.
fn demand_unknown(pair: &mut Pair, connection: &Connection, what: &str) -> Result<()> {
    pair.expect(what, &connection.from_client(flags::ACK).build(), UNKNOWN)?;
    let reply = connection.from_backend(flags::ACK).build();
    pair.expect(what, &reply, UNKNOWN_REPLY).map(drop)
}

#[test]
fn packets_of_flows_that_have_lasted_need_no_entry() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for vip in [VIP, VIP_IPV6] {
        pair.within_one_tick(|pair| {
            let connection = lasting(pair, vip)?;
            pair.remove_entries()?;
            for _ in 0..3 {
                exchange(pair, &connection, "by its trace")?;
            }
            // What may end or begin a flow is looked up, and so is what came elsewhere.
            for bits in [flags::FIN | flags::ACK, flags::RST, flags::RST | flags::ACK] {
                let request = connection.from_client(bits).build();
                pair.expect("a client's end", &request, UNKNOWN)?;
                let reply = connection.from_backend(bits).build();
                pair.expect("a backend's end", &reply, UNKNOWN_REPLY)?;
            }
            let flooded = |mut segment: Segment| {
                segment.destination_mac[5] ^= 0x40;
                segment.build()
            };
            let request = flooded(connection.from_client(flags::ACK));
            pair.expect("another station's", &request, Reason::OtherStation)?;
            let mut moved = connection.from_client(flags::ACK);
            moved.source_mac[5] ^= 0x40;
            pair.expect("from another station", &moved.build(), UNKNOWN)?;
            let mut other = connection.from_client(flags::ACK);
            other.source_port += 1;
            pair.expect("another flow's", &other.build(), UNKNOWN).map(drop)
        })?;
    }
    Ok(())
}

#[test]
fn a_trace_gives_way_to_whatever_changes_its_flow() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    type Change = fn(&mut Pair, &Connection) -> Result<()>;
    let changes: [(&str, Change); 6] = [
        ("client's FIN", |pair, connection| {
            connection.request(pair, "FIN", &connection.from_client(flags::FIN | flags::ACK))
        }),
        ("client's RST", |pair, connection| {
            connection.request(pair, "RST", &connection.from_client(flags::RST))
        }),
        ("backend's FIN", |pair, connection| {
            connection.reply(pair, "FIN", &connection.from_backend(flags::FIN | flags::ACK))
        }),
        ("backend's RST", |pair, connection| {
            connection.reply(pair, "RST", &connection.from_backend(flags::RST | flags::ACK))
        }),
        ("another station of the client's", |pair, connection| {
            let mut moved = connection.from_client(flags::ACK);
            moved.source_mac[5] ^= 0x40;
            connection.request(pair, "from elsewhere", &moved)
        }),
        ("reset since the backend is down", |pair, connection| {
            let index = connection.backend;
            pair.change_backend(index, |backend| backend.fate = lb_common::abi::Fate::Reset)?;
            let request = connection.from_client(flags::ACK).build();
            pair.expect("down", &request, Reason::BackendDown)?;
            pair.change_backend(index, |backend| backend.fate = lb_common::abi::Fate::Keep)
        }),
    ];
    for vip in [VIP, VIP_IPV6] {
        for (what, change) in changes {
            pair.within_one_tick(|pair| {
                let connection = lasting(pair, vip)?;
                change(pair, &connection)?;
                pair.remove_entries()?;
                demand_unknown(pair, &connection, what)
            })?;
        }
    }
    Ok(())
}

#[test]
fn replies_follow_a_client_to_its_new_station() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for vip in [VIP, VIP_IPV6] {
        pair.reset()?;
        let connection = lasting(&mut pair, vip)?;
        for bit in [0x40, 0x20, 0] {
            let mut moved = connection.from_client(flags::ACK);
            moved.source_mac[5] ^= bit;
            for _ in 0..2 {
                connection.request(&mut pair, "from a station", &moved)?;
                let reply = connection.from_backend(flags::ACK).build();
                let outcome = pair.expect("a reply", &reply, Reason::ToClient)?;
                let to = Seen::new(&outcome.frame).destination_mac;
                ensure!(to == moved.source_mac, "{vip:?}: to {to:x?}");
            }
        }
    }
    pair.compare_tables()
}

#[test]
fn a_connection_from_the_same_port_begins_without_the_one_before() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for vip in [VIP, VIP_IPV6] {
        pair.reset()?;
        let first = lasting(&mut pair, vip)?;
        first.close(&mut pair)?;
        let second = Connection::open(&mut pair, vip)?;
        ensure!(second.nat != first.nat, "{vip:?}: its port at once");
        second.establish(&mut pair)?;
        pair.age_flows(AGE)?;
        for _ in 0..3 {
            exchange(&mut pair, &second, "the second one's")?;
        }
        let late = first.from_backend(flags::ACK).build();
        pair.expect("late", &late, UNKNOWN_REPLY)?;
    }
    pair.compare_tables()
}

#[test]
fn young_flows_leave_no_trace() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for vip in [VIP, VIP_IPV6] {
        pair.within_one_tick(|pair| {
            let connection = Connection::open(pair, vip)?;
            connection.establish(pair)?;
            for _ in 0..3 {
                exchange(pair, &connection, "a young one's")?;
            }
            pair.remove_entries()?;
            demand_unknown(pair, &connection, "young")
        })?;
    }
    Ok(())
}

#[test]
fn where_only_the_backends_address_is_put_in_traces_do_as_well() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let world = &pair.host.world;
    let is_own = |(_, vip, backend): &(Forwarding, Socket, u32)| {
        let (_, service) = world.services.iter().find(|(address, _)| address == vip).unwrap();
        // One that two services share, as no configuration has it, leaves no trace of one of them.
        world.backends[*backend as usize - 1].service == service.index
    };
    let others = OTHER_FORWARDINGS.into_iter().filter(is_own);
    let others = others.filter(|(forwarding, ..)| *forwarding == Forwarding::Nat);
    for (_, vip, backend) in others.collect::<Vec<_>>() {
        let client = client_of(vip.0);
        let segment = |bits| {
            let mut segment = Segment::syn(client, vip).with_flags(bits);
            segment.sequence += u32::from(bits != flags::SYN);
            segment.acknowledgement = 5001;
            segment
        };
        let answer = |bits| {
            let mut answer = Segment::syn(backend_address(backend), client).with_flags(bits);
            answer.source_mac = backend_mac(backend);
            (answer.sequence, answer.acknowledgement) = (5000, 1001);
            answer.sequence += u32::from(bits == flags::ACK);
            answer
        };
        pair.within_one_tick(|pair| {
            pair.expect("SYN", &segment(flags::SYN).build(), Reason::Opened)?;
            let syn_ack = answer(flags::SYN | flags::ACK).build();
            pair.expect("SYN-ACK", &syn_ack, Reason::ToClient)?;
            pair.expect("ACK", &segment(flags::ACK).build(), Reason::ToBackend)?;
            pair.age_flows(AGE)?;
            for round in 0..2 {
                pair.expect("a request", &segment(flags::ACK).build(), Reason::ToBackend)?;
                pair.expect("a reply", &answer(flags::ACK).build(), Reason::ToClient)?;
                if round == 0 {
                    pair.remove_entries()?;
                }
            }
            // Flooded to us: also the station of the client's.
            let mut flooded = answer(flags::ACK);
            flooded.destination_mac[5] ^= 0x40;
            pair.expect("flooded", &flooded.build(), UNKNOWN_REPLY).map(drop)
        })?;
    }
    Ok(())
}

#[test]
fn datagrams_to_backends_need_no_entry_either() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for vip in [VIP, VIP_IPV6] {
        pair.within_one_tick(|pair| {
            let request = Segment::udp(client_of(vip.0), vip).build();
            let first = Seen::new(&pair.expect("first", &request, Reason::Opened)?.frame);
            let mut answer = Segment::udp(first.destination, first.source);
            answer.source_mac = first.destination_mac;
            pair.expect("its answer", &answer.build(), Reason::ToClient)?;
            pair.expect("second", &request, Reason::ToBackend)?;
            pair.age_flows(AGE)?;
            let looked_up = pair.expect("looked up", &request, Reason::ToBackend)?;
            pair.remove_entries()?;
            let steady = pair.expect("without an entry", &request, Reason::ToBackend)?;
            ensure!(steady == looked_up, "{steady:?}, not {looked_up:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_trace_says_only_what_the_entry_does() -> Result<()> {
    type Change = fn(&mut Backend);
    let changes: [(Change, bool); 4] = [
        (|_| (), true),
        (|backend| backend.address.swap(0, 3), false),
        (|backend| backend.port = NetworkU16::new(backend.port.get() + 1), false),
        (|backend| backend.service += 1, false),
    ];
    let mut pair = Pair::new(&World::default())?;
    for vip in [VIP, VIP_IPV6] {
        for (number, (change, leaves_one)) in changes.into_iter().enumerate() {
            pair.within_one_tick(|pair| {
                let connection = Connection::open(pair, vip)?;
                connection.establish(pair)?;
                pair.age_flows(AGE)?;
                let before = pair.host.world.backends[connection.backend as usize - 1];
                pair.change_backend(connection.backend, change)?;
                for _ in 0..2 {
                    let what = "to where its entry says";
                    connection.request(pair, what, &connection.from_client(flags::ACK))?;
                }
                ensure!(pair.host.nat_traces() == usize::from(leaves_one), "{vip:?}, {number}");
                pair.remove_entries()?;
                let reason = if leaves_one { Reason::ToBackend } else { UNKNOWN };
                let request = connection.from_client(flags::ACK).build();
                pair.expect("without an entry", &request, reason)?;
                pair.change_backend(connection.backend, |backend| *backend = before)
            })?;
        }
    }
    Ok(())
}

#[test]
fn what_the_sweep_removes_leaves_no_trace() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for vip in [VIP, VIP_IPV6] {
        // With each, it lies elsewhere.
        for _ in 0..8 {
            pair.within_one_tick(|pair| {
                let connection = lasting(pair, vip)?;
                pair.kernel.sweep_flows()?;
                pair.host.forget_flows();
                demand_unknown(pair, &connection, "swept")
            })?;
        }
    }
    Ok(())
}

#[test]
fn a_replys_trace_says_only_what_the_entry_does() -> Result<()> {
    type Change = fn(&mut Pair, &Connection) -> Result<()>;
    fn change_station(pair: &mut Pair, change: fn(&mut Station)) -> Result<()> {
        let stations = pair.host.world.stations();
        stations.into_iter().try_for_each(|(place, mut station)| {
            change(&mut station);
            pair.set_station(place, station)
        })
    }
    let changes: [(Change, bool); 5] = [
        (|_, _| Ok(()), true),
        (|pair, it| pair.change_backend(it.backend, |backend| backend.service += 1), false),
        (|pair, _| change_station(pair, |station| station.maximum_datagram -= 1), true),
        (|pair, _| change_station(pair, |station| station.mac.interface += 1), false),
        (|pair, _| change_station(pair, |station| *station = Station::default()), false),
    ];
    let mut pair = Pair::new(&World::default())?;
    for vip in [VIP, VIP_IPV6] {
        for (number, (change, leaves_one)) in changes.into_iter().enumerate() {
            // Before it leaves a trace, and afterwards.
            for is_before in [true, false] {
                pair.within_one_tick(|pair| {
                    let connection = Connection::open(pair, vip)?;
                    connection.establish(pair)?;
                    pair.age_flows(AGE)?;
                    let backend = pair.host.world.backends[connection.backend as usize - 1];
                    let reply = connection.from_backend(flags::ACK);
                    if is_before {
                        change(pair, &connection)?;
                    }
                    for _ in 0..2 {
                        connection.reply(pair, "to where its entry says", &reply)?;
                    }
                    let leaves_one = leaves_one || !is_before;
                    ensure!(pair.host.reply_traces() == usize::from(leaves_one), "{number}");
                    if number == changes.len() - 1 && !is_before {
                        // Whoever takes it away erases what is left afterwards.
                        change(pair, &connection)?;
                        pair.remove_entries()?;
                        pair.expect("from nowhere", &reply.build(), UNKNOWN_REPLY)?;
                    }
                    change_station(pair, |_| ())?;
                    pair.change_backend(connection.backend, |it| *it = backend)
                })?;
            }
        }
    }
    Ok(())
}
