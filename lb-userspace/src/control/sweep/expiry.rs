//! Which flows are over, and their removal.

use lb_common::{
    abi::{Direction, Fate, Flow, FlowKey, FlowState, Protocol, Tick, finished},
    datapath::{LEAST_TRACED_AGE, TRACE_TICKS, Table},
    wire::{Address, PROTOCOL_UDP},
};

use super::{Orders, wake::Waker};
use crate::dataplane::{self, DataplaneError, FamilyMaps, Shortcuts};

/// Removes those of the flows of `keys` whose both directions have been idle for longer than their state's
/// timeout. Returns how many entries that were.
pub(super) fn remove<A: Address>(
    maps: &mut FamilyMaps<A>,
    table: Table,
    orders: &Orders,
    keys: &[FlowKey<A>],
    (now, crowded): (Tick, bool),
    shortcuts: &Shortcuts,
) -> usize {
    let mut removed = 0;
    for key in keys {
        let map = maps.flows(table);
        // Each of them is looked at once more: it may have seen a packet since.
        let Ok(mut flow) = map.get(key, 0) else { continue };
        let peer = flow.forwarding.sees_replies().then(|| flow.peer_key(key.protocol));
        let mut other = peer.and_then(|peer| map.get(&peer, 0).ok());
        // When it was opened, only the direction to the backend says for sure.
        if let Some(other) = &mut other {
            if flow.direction == Direction::ToBackend as u8 {
                other.opened = flow.opened;
            } else {
                flow.opened = other.opened;
            }
        }
        let peer_is_alive = other.is_some_and(|other| !is_over(orders, &other, now, crowded));
        if is_over(orders, &flow, now, crowded) && !peer_is_alive {
            for key in [Some(*key), peer].into_iter().flatten() {
                removed += usize::from(maps.remove_flow(table, &key, shortcuts));
            }
        }
    }
    removed
}

/// Ends the flows of backends that are down, as their services say: those that are to move are forgotten, and
/// the clients of others are woken, so that their answer meets a reset. Returns whether there were any.
pub(super) fn end_flows<A: Address>(
    maps: &mut FamilyMaps<A>,
    orders: &Orders,
    waker: &mut Waker,
    shortcuts: &Shortcuts,
) -> Result<bool, DataplaneError> {
    let mut any = false;
    if !orders.are_urgent() {
        return Ok(any);
    }
    let mut forgotten: Vec<(FlowKey<A>, Flow<A>)> = Vec::new();
    maps.for_each(Table::Established, |key, flow| {
        let fate = orders.fate(flow);
        if flow.direction != Direction::ToBackend as u8 || fate == Fate::Keep {
            return;
        }
        let is_udp = key.protocol == u32::from(PROTOCOL_UDP);
        if flow.state == FlowState::CLOSED && !is_udp {
            let was_reset = flow.finished & finished::BACKEND_RESET != 0;
            if fate == Fate::Reset && was_reset && waker.wakes_again(flow.backend) {
                waker.wake(key, flow);
            }
            return;
        }
        any = true;
        if fate != Fate::Reset || is_udp || !waker.wake(key, flow) {
            forgotten.push((*key, *flow));
        }
    })?;
    for (key, flow) in forgotten {
        // Another one may have begun under the same key since.
        let is_same = |now: Flow<A>| (now.backend, now.opened) == (flow.backend, flow.opened);
        if !maps.flows(Table::Established).get(&key, 0).is_ok_and(is_same) {
            continue;
        }
        let peer = flow.forwarding.sees_replies().then(|| flow.peer_key(key.protocol));
        for key in [Some(key), peer].into_iter().flatten() {
            // What isn't there any longer is as good as removed.
            let _: bool = maps.remove_flow(Table::Established, &key, shortcuts);
        }
    }
    Ok(any)
}

/// Whether a direction may have been idle for longer than the flow's state allows: [`remove`] knows it of both. In a table
/// that is `crowded`, flows have to make room that nobody may have meant to open, or that are over anyway.
pub(super) fn is_over<A: Address>(
    orders: &Orders,
    flow: &Flow<A>,
    now: Tick,
    crowded: bool,
) -> bool {
    let unknown = (Protocol::Tcp, TIMEOUTS_OF_UNKNOWN_SERVICE);
    let service = orders.services.get(&flow.service);
    let (protocol, timeouts) = service.map_or(unknown, |info| (info.protocol, info.timeouts));
    let [syn, established, closing, udp] = timeouts;
    let lived = dataplane::seconds(flow.last_seen.since(flow.opened));
    let lived = u32::try_from(lived).unwrap_or(u32::MAX);
    // Both ends' consent to a handshake can be told from spoofed packets; one end's can't, nor that of UDP.
    let has_handshake = protocol == Protocol::Tcp && flow.forwarding.sees_replies();
    let timeout = match flow.state {
        state if state.is_half_open() => syn,
        _ if crowded && flow.is_surely_over() => closing.min(1),
        _ if crowded && protocol == Protocol::Udp => udp.min(lived.max(syn)),
        FlowState::ESTABLISHED if crowded && !has_handshake => established.min(lived.max(syn)),
        _ if protocol == Protocol::Udp => udp,
        FlowState::ESTABLISHED => established,
        // One end may still wait for the other's answer. And FIN and RST may be somebody else's, which the next
        // segment shows: a connection that has lasted may take its time with that.
        FlowState::CLOSING => closing.max(HALF_CLOSED).max(lived.min(established)),
        _ if !flow.is_surely_over() => closing.max(lived.min(HALF_CLOSED)),
        _ => closing,
    };
    // Of a flow that may have left a trace, not every packet is noted.
    let may_have_trace = flow.last_seen.since(flow.opened) >= LEAST_TRACED_AGE;
    let timeout = match flow.state {
        FlowState::ESTABLISHED if may_have_trace || !flow.forwarding.sees_replies() => {
            timeout.saturating_add(UNNOTED)
        }
        _ => timeout,
    };
    // A tick is longer than a second: what was seen in the one before may be a moment old.
    dataplane::seconds(now.since(flow.last_seen).saturating_sub(1)) >= u64::from(timeout)
}

/// For how long an established flow may have packets that aren't noted, in seconds: as long as its trace holds.
const UNNOTED: u32 = (TRACE_TICKS as u64 * Tick::NANOSECONDS).div_ceil(1_000_000_000) as u32;

/// Least timeout of a connection that one end has closed, in seconds (RFC 5382, REQ-5).
const HALF_CLOSED: u32 = 240;

/// Seconds, as in the configuration's defaults.
const TIMEOUTS_OF_UNKNOWN_SERVICE: [u32; 4] = [10, 3600, 30, 60];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lb_common::{
        abi::{Balance, Forwarding, Lifecycle, ServiceInfo, Text},
        wire::Ipv4Address,
    };

    use super::*;

    /// When all flows here were opened, in seconds.
    const OPENED: u64 = 5000;

    fn flow(forwarding: Forwarding, finished: u8, last_seen: u64) -> Flow<Ipv4Address> {
        let mut flow: Flow<Ipv4Address> = bytemuck::Zeroable::zeroed();
        flow.state = FlowState::after(finished);
        flow.finished = finished;
        flow.forwarding = forwarding;
        flow.opened = tick(OPENED);
        flow.last_seen = tick(last_seen);
        flow
    }

    fn tick(seconds: u64) -> Tick {
        Tick::from_nanoseconds(seconds * 1_000_000_000)
    }

    fn orders(protocol: Protocol) -> Orders {
        let info = ServiceInfo {
            name: Text::new("web"),
            lifecycle: Lifecycle::Active,
            forwarding: Forwarding::FullNat,
            protocol,
            on_down: Fate::Keep,
            balance: Balance::Maglev,
            padding: [0; 3],
            timeouts: [10, 3600, 30, 60],
            access: 0,
            affinity: 0,
        };
        Orders { services: BTreeMap::from([(0, info)]), ..Orders::default() }
    }

    /// Demands that a flow lasts for so many seconds, and hardly longer.
    fn demand(orders: &Orders, flow: &Flow<Ipv4Address>, timeout: u64, crowded: bool) {
        let seen = dataplane::seconds(flow.last_seen.since(Tick::default()));
        let is_over = |at: u64| is_over(orders, flow, tick(at), crowded);
        assert!(!is_over(seen + timeout - 1), "{flow:?}: not for {timeout} s");
        assert!(is_over(seen + timeout + 3), "{flow:?}: for longer than {timeout} s");
        assert!(!is_over(seen - 2));
    }

    #[test]
    fn each_state_has_its_own_timeout_and_none_expires_early() {
        let orders = orders(Protocol::Tcp);
        let nat = |finished, seen| flow(Forwarding::FullNat, finished, seen);
        for seen in OPENED + 5..OPENED + 15 {
            for state in [FlowState::SYN, FlowState::ANSWERED, FlowState::REFUSED] {
                demand(&orders, &Flow { state, ..nat(0, seen) }, 10, false);
            }
            demand(&orders, &nat(0, seen), 3600 + 9, false);
            demand(&orders, &nat(finished::CLIENT, seen), 240, false);
            for closed in [finished::BOTH_SURELY, finished::CLIENT_RESET, finished::BACKEND_RESET] {
                demand(&orders, &nat(closed, seen), 30, false);
            }
        }
    }

    #[test]
    fn what_a_stranger_may_have_ended_lasts_as_long_as_it_had_lasted() {
        let orders = orders(Protocol::Tcp);
        let lived = |finished, seconds| flow(Forwarding::Nat, finished, OPENED + seconds);
        demand(&orders, &lived(finished::CLIENT_RESET, 100), 100, false);
        demand(&orders, &lived(finished::CLIENT_RESET, 7200), 240, false);
        demand(&orders, &lived(finished::CLIENT, 1800), 1800, false);
        demand(&orders, &lived(finished::CLIENT, 7200), 3600, false);
        // Of what comes from a backend, and of what both ends say, nobody else is the author.
        demand(&orders, &lived(finished::CLIENT_RESET | finished::BACKEND_RESET, 7200), 30, false);
        demand(&orders, &lived(finished::BOTH_SURELY, 7200), 30, false);
    }

    #[test]
    fn in_a_crowded_table_what_spoofed_packets_can_open_makes_room() {
        let (tcp, udp) = (orders(Protocol::Tcp), orders(Protocol::Udp));
        let brief = |forwarding| flow(forwarding, 0, OPENED + 1);
        demand(&tcp, &brief(Forwarding::Dsr), 10 + 9, true);
        demand(&tcp, &brief(Forwarding::Dsr), 3600 + 9, false);
        demand(&udp, &brief(Forwarding::FullNat), 10, true);
        demand(&udp, &brief(Forwarding::FullNat), 60, false);
        demand(&tcp, &brief(Forwarding::FullNat), 3600, true);
        let closed = flow(Forwarding::FullNat, finished::BOTH_SURELY, OPENED + 10);
        demand(&tcp, &closed, 1, true);
        demand(&tcp, &flow(Forwarding::FullNat, finished::CLIENT_RESET, OPENED + 10), 30, true);
        let lasting = |forwarding| flow(forwarding, 0, OPENED + 20);
        demand(&tcp, &lasting(Forwarding::Dsr), 20 + 9, true);
        demand(&tcp, &lasting(Forwarding::Dsr), 3600 + 9, false);
        demand(&udp, &lasting(Forwarding::FullNat), 20 + 9, true);
        demand(&tcp, &lasting(Forwarding::FullNat), 3600 + 9, true);
    }
}
