//! Forgetting flows that have been idle for too long.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    abi::{Flow, FlowState, Protocol, ServiceInfo, Tick},
    datapath::Table,
    wire::Address,
};

use crate::dataplane::{self, DataplaneError, FamilyMaps, Maps};

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Swept {
    /// Entries removed; a flow has one for each direction.
    pub(super) removed: usize,
    /// Backends that flows name.
    pub(super) backends_in_use: BTreeSet<u32>,
}

/// Removes the flows whose both directions have been idle for longer than their state's timeout.
///
/// # Errors
///
/// A map can't be read.
pub(super) fn sweep(
    maps: &mut Maps,
    services: &BTreeMap<u32, ServiceInfo>,
    now: Tick,
) -> Result<Swept, DataplaneError> {
    let mut swept = Swept::default();
    for table in [Table::Established, Table::Embryonic] {
        sweep_table(&mut maps.ipv4, table, services, now, &mut swept)?;
        sweep_table(&mut maps.ipv6, table, services, now, &mut swept)?;
    }
    Ok(swept)
}

fn sweep_table<A: Address>(
    maps: &mut FamilyMaps<A>,
    table: Table,
    services: &BTreeMap<u32, ServiceInfo>,
    now: Tick,
    swept: &mut Swept,
) -> Result<(), DataplaneError> {
    let mut candidates = Vec::new();
    maps.for_each(table, |key, flow| {
        swept.backends_in_use.insert(flow.backend);
        if is_expired(flow, services, now) {
            candidates.push(*key);
        }
    })?;
    let map = maps.flows_mut(table);
    for key in candidates {
        // Each of them is looked at once more: it may have seen a packet since.
        let Ok(flow) = map.get(&key, 0) else { continue };
        let peer = flow.forwarding.sees_replies().then(|| flow.peer_key(key.protocol));
        let peer_is_alive = peer
            .and_then(|peer| map.get(&peer, 0).ok())
            .is_some_and(|peer| !is_expired(&peer, services, now));
        if is_expired(&flow, services, now) && !peer_is_alive {
            for key in [Some(key), peer].into_iter().flatten() {
                swept.removed += usize::from(map.remove(&key).is_ok());
            }
        }
    }
    Ok(())
}

fn is_expired<A: Address>(
    flow: &Flow<A>,
    services: &BTreeMap<u32, ServiceInfo>,
    now: Tick,
) -> bool {
    let (protocol, timeouts) =
        services.get(&flow.service).map_or((Protocol::Tcp, TIMEOUTS_OF_UNKNOWN_SERVICE), |info| {
            (info.protocol, info.timeouts)
        });
    let [syn, established, closing, udp] = timeouts;
    let timeout = match flow.state {
        _ if protocol == Protocol::Udp => udp,
        FlowState::SYN | FlowState::ANSWERED => syn,
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
    use super::*;
    use lb_common::{
        abi::{Forwarding, Lifecycle, Text},
        wire::Ipv4Address,
    };

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
            reserved: 0,
            timeouts: [10, 3600, 30, 60],
        };
        let services = BTreeMap::from([(0, info)]);
        for (state, timeout) in [
            (FlowState::SYN, 10),
            (FlowState::ANSWERED, 10),
            (FlowState::ESTABLISHED, 3600),
            (FlowState::CLOSING, 240),
            (FlowState::CLOSED, 30),
        ] {
            for seen in 5000..5010 {
                let flow = flow(state, seen);
                assert!(!is_expired(&flow, &services, tick(seen + timeout)));
                assert!(is_expired(&flow, &services, tick(seen + timeout + 3)));
                assert!(!is_expired(&flow, &services, tick(seen - 2)));
            }
        }
    }
}
