//! How many tables a packet looks at: what it takes beside the tables themselves, and changes by nothing but the code.

use anyhow::{Result, ensure};
use lb_common::{
    abi::Forwarding,
    datapath::{LEAST_TRACED_AGE, Reason},
};
use lb_tests::{
    connection::Connection,
    frame::{Segment, flags},
    host::LookUps,
    pair::Pair,
    world::{OTHER_FORWARDINGS, Socket, VIP, World, backend_address, client_of},
};

/// Sends a frame, and demands its look-ups.
fn demand(
    pair: &mut Pair,
    what: &str,
    frame: &[u8],
    reason: Reason,
    [hashes, arrays]: [u32; 2],
) -> Result<()> {
    pair.expect(what, frame, reason)?;
    let found = pair.host.look_ups();
    ensure!(found == LookUps { hashes, arrays }, "{what}: {found:?}, not [{hashes}, {arrays}]");
    Ok(())
}

#[test]
fn packets_look_at_no_more_tables_than_they_have_to() -> Result<()> {
    let mut world = World::default();
    world.settings.replies_anywhere = 0;
    let mut pair = Pair::new(&world)?;
    // For each packet: hash tables, arrays.
    let elsewhere = Segment::syn(client_of(VIP.0), (VIP.0, 22)).build();
    demand(&mut pair, "not ours", &elsewhere, Reason::NoService, [0, 1])?;
    let elsewhere = Segment::syn(client_of(VIP.0), (backend_address(1).0, VIP.1)).build();
    demand(&mut pair, "not ours, to a port of ours", &elsewhere, Reason::NoService, [4, 4])?;

    let syn = Segment::syn(client_of(VIP.0), VIP).build();
    demand(&mut pair, "full NAT: SYN", &syn, Reason::Opened, [8, 19])?;
    // Traces hold for some seconds, and what comes after one is looked up.
    pair.within_one_tick(demand_of_full_nat)?;
    // Where an outer header needs a number of the flow's, the settings are looked at once more.
    for (forwarding, arrays) in [(Forwarding::Dsr, 6), (Forwarding::Ipip, 6), (Forwarding::Gue, 7)]
    {
        pair.within_one_tick(|pair| demand_of_direct_return(pair, forwarding, arrays))?;
    }
    Ok(())
}

fn demand_of_full_nat(pair: &mut Pair) -> Result<()> {
    let connection = Connection::open(pair, VIP)?;
    let syn_ack = connection.syn_ack().build();
    demand(pair, "full NAT: SYN-ACK", &syn_ack, Reason::ToClient, [4, 10])?;
    let ack = connection.ack().build();
    demand(pair, "full NAT: its ACK", &ack, Reason::ToBackend, [8, 14])?;
    demand(pair, "full NAT: a request", &ack, Reason::ToBackend, [1, 10])?;
    let reply = connection.from_backend(flags::ACK).build();
    demand(pair, "full NAT: a reply", &reply, Reason::ToClient, [1, 8])?;

    pair.age_flows(LEAST_TRACED_AGE)?;
    demand(pair, "full NAT: looked up", &ack, Reason::ToBackend, [2, 15])?;
    demand(pair, "full NAT: steady", &ack, Reason::ToBackend, [0, 8])?;
    demand(pair, "full NAT: a reply looked up", &reply, Reason::ToClient, [2, 13])?;
    demand(pair, "full NAT: a steady reply", &reply, Reason::ToClient, [0, 8])
}

fn demand_of_direct_return(pair: &mut Pair, forwarding: Forwarding, arrays: u32) -> Result<()> {
    let of_it = OTHER_FORWARDINGS.into_iter().find(|(how, ..)| *how == forwarding);
    let (_, vip, _): (Forwarding, Socket, u32) = of_it.expect("one that forwards like this");
    let segment = |bits| {
        let mut segment = Segment::syn(client_of(vip.0), vip).with_flags(bits);
        segment.sequence += u32::from(bits != flags::SYN);
        segment.build()
    };
    let more = arrays - 6;
    let mut demand = |what: &str, bits, reason, [hashes, arrays]: [u32; 2]| {
        let what = format!("{forwarding:?}: {what}");
        demand(pair, &what, &segment(bits), reason, [hashes, arrays + more])
    };
    demand("SYN", flags::SYN, Reason::Opened, [5, 17])?;
    demand("its ACK", flags::ACK, Reason::ToBackend, [5, 15])?;
    demand("looked up", flags::ACK, Reason::ToBackend, [2, 15])?;
    demand("steady", flags::ACK, Reason::ToBackend, [0, 6])
}
