//! Which flows are over, and their removal.

use lb_common::{
    abi::{Direction, Fate, Flow, FlowKey, FlowState, Protocol, Tick},
    datapath::Table,
    wire::{Address, PROTOCOL_UDP},
};

use super::{Orders, wake::Waker};
use crate::dataplane::{self, DataplaneError, FamilyMaps};

/// Removes those of the flows of `keys` whose both directions have been idle for longer than their state's
/// timeout. Returns how many entries that were.
pub(super) fn remove<A: Address>(
    maps: &mut FamilyMaps<A>,
    table: Table,
    orders: &Orders,
    keys: &[FlowKey<A>],
    now: Tick,
) -> usize {
    let mut removed = 0;
    let map = maps.flows_mut(table);
    for key in keys {
        // Each of them is looked at once more: it may have seen a packet since.
        let Ok(flow) = map.get(key, 0) else { continue };
        let peer = flow.forwarding.sees_replies().then(|| flow.peer_key(key.protocol));
        let peer_is_alive = peer
            .and_then(|peer| map.get(&peer, 0).ok())
            .is_some_and(|peer| !is_over(orders, &peer, now));
        if is_over(orders, &flow, now) && !peer_is_alive {
            for key in [Some(*key), peer].into_iter().flatten() {
                removed += usize::from(map.remove(&key).is_ok());
            }
        }
    }
    removed
}

/// Ends the flows of backends that are down, as their services say: those that are to move are forgotten, and
/// the clients of others are woken, so that their answer meets a reset.
pub(super) fn end_flows<A: Address>(
    maps: &mut FamilyMaps<A>,
    orders: &Orders,
    waker: &mut Waker,
) -> Result<(), DataplaneError> {
    waker.begin(orders);
    if !orders.are_urgent() {
        return Ok(());
    }
    let mut forgotten: Vec<(FlowKey<A>, Flow<A>)> = Vec::new();
    maps.for_each(Table::Established, |key, flow| {
        if flow.direction != Direction::ToBackend as u8 || flow.state == FlowState::CLOSED {
            return;
        }
        let is_udp = key.protocol == u32::from(PROTOCOL_UDP);
        match orders.fate(flow) {
            Fate::Reset if !is_udp && waker.wake(key, flow) => {}
            Fate::Keep => {}
            _ => forgotten.push((*key, *flow)),
        }
    })?;
    let map = maps.flows_mut(Table::Established);
    for (key, flow) in forgotten {
        let peer = flow.forwarding.sees_replies().then(|| flow.peer_key(key.protocol));
        for key in [Some(key), peer].into_iter().flatten() {
            // What isn't there any longer is as good as removed.
            let _: Result<(), aya::maps::MapError> = map.remove(&key);
        }
    }
    Ok(())
}

/// Whether a direction has been idle for longer than the flow's state allows.
pub(super) fn is_over<A: Address>(orders: &Orders, flow: &Flow<A>, now: Tick) -> bool {
    let unknown = (Protocol::Tcp, TIMEOUTS_OF_UNKNOWN_SERVICE);
    let service = orders.services.get(&flow.service);
    let (protocol, timeouts) = service.map_or(unknown, |info| (info.protocol, info.timeouts));
    let [syn, established, closing, udp] = timeouts;
    let timeout = match flow.state {
        _ if protocol == Protocol::Udp => udp,
        state if state.is_half_open() => syn,
        FlowState::ESTABLISHED => established,
        // One end may still wait for the other's answer.
        FlowState::CLOSING => closing.max(HALF_CLOSED),
        _ => closing,
    };
    // A tick is longer than a second: what was seen in the one before may be a moment old.
    dataplane::seconds(now.since(flow.last_seen).saturating_sub(1)) >= u64::from(timeout)
}

/// Least timeout of a connection that one end has closed, in seconds (RFC 5382, REQ-5).
const HALF_CLOSED: u32 = 240;

/// Seconds, as in the configuration's defaults.
const TIMEOUTS_OF_UNKNOWN_SERVICE: [u32; 4] = [10, 3600, 30, 60];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lb_common::{
        abi::{Forwarding, Lifecycle, ServiceInfo, Text},
        wire::Ipv4Address,
    };

    use super::*;

    fn flow(state: FlowState, last_seen: u64) -> Flow<Ipv4Address> {
        let mut flow: Flow<Ipv4Address> = bytemuck::Zeroable::zeroed();
        flow.state = state;
        flow.last_seen = tick(last_seen);
        flow
    }

    fn tick(seconds: u64) -> Tick {
        Tick::from_nanoseconds(seconds * 1_000_000_000)
    }

    #[test]
    fn each_state_has_its_own_timeout_and_none_expires_early() {
        let info = ServiceInfo {
            name: Text::new("web"),
            lifecycle: Lifecycle::Active,
            forwarding: Forwarding::FullNat,
            protocol: Protocol::Tcp,
            on_down: Fate::Keep,
            timeouts: [10, 3600, 30, 60],
            access: 0,
            affinity: 0,
        };
        let orders = Orders { services: BTreeMap::from([(0, info)]), ..Orders::default() };
        for (state, timeout) in [
            (FlowState::SYN, 10),
            (FlowState::ANSWERED, 10),
            (FlowState::REFUSED, 10),
            (FlowState::ESTABLISHED, 3600),
            (FlowState::CLOSING, 240),
            (FlowState::CLOSED, 30),
        ] {
            for seen in 5000..5010 {
                let flow = flow(state, seen);
                assert!(!is_over(&orders, &flow, tick(seen + timeout)));
                assert!(is_over(&orders, &flow, tick(seen + timeout + 3)));
                assert!(!is_over(&orders, &flow, tick(seen - 2)));
            }
        }
    }
}
