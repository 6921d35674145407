//! Forgetting flows that have been idle for too long.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{HashMap, MapData};
use lb_common::{
    abi::{Flow, FlowKey, FlowState, ServiceInfo, Tick},
    wire::Ipv4Address,
};

use crate::dataplane::{self, DataplaneError, Maps};

type Key = FlowKey<Ipv4Address>;
type Entry = Flow<Ipv4Address>;

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
    let mut candidates = Vec::new();
    let mut visit = |key: &Key, flow: &Entry| {
        swept.backends_in_use.insert(flow.backend);
        if is_expired(flow, services, now) {
            candidates.push(*key);
        }
    };
    maps.for_each_flow(&mut visit)?;
    let established = std::mem::take(&mut candidates);
    let mut visit = |key: &Key, flow: &Entry| {
        swept.backends_in_use.insert(flow.backend);
        if is_expired(flow, services, now) {
            candidates.push(*key);
        }
    };
    maps.for_each_embryonic(&mut visit)?;
    swept.removed = remove(&mut maps.flows, &established, services, now)
        + remove(&mut maps.embryonic, &candidates, services, now);
    Ok(swept)
}

/// Removes each of the candidates that is still expired, and so is its other direction.
fn remove(
    table: &mut HashMap<MapData, Key, Entry>,
    candidates: &[Key],
    services: &BTreeMap<u32, ServiceInfo>,
    now: Tick,
) -> usize {
    let mut removed = 0;
    for key in candidates {
        let Ok(flow) = table.get(key, 0) else { continue };
        let peer = flow.peer_key(key.protocol);
        let peer_is_alive = table.get(&peer, 0).is_ok_and(|peer| !is_expired(&peer, services, now));
        if is_expired(&flow, services, now) && !peer_is_alive {
            removed += usize::from(table.remove(key).is_ok());
            removed += usize::from(table.remove(&peer).is_ok());
        }
    }
    removed
}

fn is_expired(flow: &Entry, services: &BTreeMap<u32, ServiceInfo>, now: Tick) -> bool {
    let [syn, established, closing] =
        services.get(&flow.service).map_or(TIMEOUTS_OF_UNKNOWN_SERVICE, |info| info.timeouts);
    let timeout = match flow.state {
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
const TIMEOUTS_OF_UNKNOWN_SERVICE: [u32; 3] = [10, 3600, 30];

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::abi::{Forwarding, Lifecycle, Text};

    fn flow(state: FlowState, last_seen: u64) -> Entry {
        let mut flow: Entry = bytemuck::Zeroable::zeroed();
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
            reserved: [0; 2],
            timeouts: [10, 3600, 30],
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
