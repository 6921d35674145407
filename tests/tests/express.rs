//! Packets that need no look at the table of flows are judged and forwarded as those that do.

use anyhow::{Result, ensure};
use lb_common::datapath::{LEAST_TRACED_AGE, Reason};
use lb_tests::{
    connection::Connection,
    frame::{Segment, flags},
    pair::Pair,
    world::{OTHER_FORWARDINGS, VIP, VIP_IPV6, World, client_of},
};

type Change = fn(&mut Segment);

/// What is wrong with a segment, and what it is refused for, over both families.
const MALFORMED: [(Change, Reason); 5] = [
    (|segment| segment.time_to_live = 1, Reason::TimeToLiveExpired),
    (|segment| segment.payload = vec![0; 1500], Reason::TooBig),
    (|segment| segment.flags = flags::PSH, Reason::InvalidFlags),
    (|segment| segment.length_error = 4, Reason::BadIpLength),
    (|segment| segment.data_offset_error = -1, Reason::BadTcpHeader),
];

/// What may be unusual about one that is forwarded all the same.
const UNUSUAL: [Change; 5] = [
    |_| (),
    |segment| segment.tcp_options = vec![1; 40],
    |segment| segment.flags |= flags::PSH,
    |segment| segment.payload = vec![7; 1000],
    |segment| segment.time_to_live = 2,
];

/// Opens a flow whose packets leave a trace from the next on, and returns that next one.
type Open<'o> = &'o dyn Fn(&mut Pair) -> Result<Segment>;

/// Demands that packets of such a flow are forwarded without an entry as they are by it.
fn demand_alike(pair: &mut Pair, open: Open<'_>, reason: Reason) -> Result<()> {
    for change in UNUSUAL {
        pair.within_one_tick(|pair| {
            let mut segment = open(pair)?;
            change(&mut segment);
            let frame = segment.build();
            let looked_up = pair.expect("looked up", &frame, reason)?;
            pair.remove_entries()?;
            let steady = pair.expect("without an entry", &frame, reason)?;
            ensure!(steady == looked_up, "{steady:?}, not {looked_up:?}");
            let [services, backends] = &*pair.host.counters.borrow();
            ensure!((services.len(), backends.len()) == (1, 1), "{services:?}, {backends:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Demands that what is malformed is refused, and changes nothing.
fn demand_refusals(pair: &mut Pair, open: Open<'_>, reason: Reason) -> Result<()> {
    pair.within_one_tick(|pair| {
        let good = open(pair)?;
        let looked_up = pair.expect("looked up", &good.build(), reason)?;
        let mut changes = MALFORMED.to_vec();
        if good.source.is_ipv4() {
            changes.push((|segment| segment.ip_checksum_error = 1, Reason::BadIpChecksum));
        }
        for (change, refused) in changes {
            let mut bad = good.clone();
            change(&mut bad);
            pair.expect("malformed", &bad.build(), refused)?;
        }
        pair.remove_entries()?;
        let steady = pair.expect("after what was malformed", &good.build(), reason)?;
        ensure!(steady == looked_up, "{steady:?}, not {looked_up:?}");
        Ok(())
    })
}

#[test]
fn by_a_copy_packets_are_judged_and_forwarded_as_by_the_table() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for vip in [VIP, VIP_IPV6] {
        let open = |pair: &mut Pair| -> Result<Connection> {
            let connection = Connection::open(pair, vip)?;
            connection.establish(pair)?;
            pair.age_flows(LEAST_TRACED_AGE)?;
            Ok(connection)
        };
        let request =
            |pair: &mut Pair| -> Result<Segment> { Ok(open(pair)?.from_client(flags::ACK)) };
        let reply =
            |pair: &mut Pair| -> Result<Segment> { Ok(open(pair)?.from_backend(flags::ACK)) };
        let both: [(Open<'_>, Reason); 2] =
            [(&request, Reason::ToBackend), (&reply, Reason::ToClient)];
        for (next, reason) in both {
            demand_alike(&mut pair, next, reason)?;
            demand_refusals(&mut pair, next, reason)?;
        }
    }
    Ok(())
}

#[test]
fn by_a_trace_packets_are_judged_and_forwarded_as_by_the_table() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    for (how, vip, _) in OTHER_FORWARDINGS {
        if how.sees_replies() {
            continue;
        }
        let open = |pair: &mut Pair| -> Result<Segment> {
            let syn = Segment::syn(client_of(vip.0), vip);
            pair.expect("SYN", &syn.build(), Reason::Opened)?;
            let mut next = syn.with_flags(flags::ACK);
            next.sequence += 1;
            pair.expect("its ACK", &next.build(), Reason::ToBackend)?;
            Ok(next)
        };
        demand_alike(&mut pair, &open, Reason::ToBackend)?;
        demand_refusals(&mut pair, &open, Reason::ToBackend)?;
        if how.encapsulates() {
            pair.within_one_tick(|pair| {
                let mut segment = open(pair)?;
                pair.expect("looked up", &segment.build(), Reason::ToBackend)?;
                // As long as may be, without one.
                segment.payload = vec![0; if vip.0.is_ipv4() { 1460 } else { 1440 }];
                let frame = segment.build();
                pair.expect("no room for an outer header", &frame, Reason::NeedsFragmentation)
                    .map(drop)
            })?;
        }
    }
    Ok(())
}
