//! Flows that have lasted, and whose replies pass through us: they leave traces in both directions, [`super::nat_traces`] and
//! [`super::reply_traces`].
//!
//! A trace holds for some seconds ([`super::TRACE_TICKS`]), so the entry itself knows by and by that the flow lives. What changes an
//! entry, or removes it, erases its traces afterwards; and who leaves a trace looks at the entry once more, and erases it if that isn't
//! the same any longer. So one of the two sees what the other has done.

use super::{Family, FamilyTables, nat_traces, reply_traces, trace_places};
use crate::abi::{CHECK_SERVICE, Direction, Flow, FlowKey, FlowState, Tick, finished};

/// Least age of a flow that leaves traces, in ticks, where its replies pass through us: many are over before they would be of use.
pub const LEAST_TRACED_AGE: u32 = 2;

/// Whether a flow's entry may have a trace, where its replies pass through us.
#[inline(always)]
pub(super) fn may_have_trace<A: Family>(flow: &Flow<A>, now: Tick) -> bool {
    flow.finished == 0
        && flow.state == FlowState::ESTABLISHED
        && flow.forwarding.sees_replies()
        && flow.service != CHECK_SERVICE
        && now.since(flow.opened) >= LEAST_TRACED_AGE
}

/// Erases the traces of both directions' entries, whose values have changed or which have been removed: `flow` is what the
/// one of `key` was before. When it was `opened`, the direction to the client may no longer know.
#[inline(always)]
pub(super) fn erase<A: Family, T: FamilyTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    flow: &Flow<A>,
    opened: Option<Tick>,
) {
    if flow.service == CHECK_SERVICE {
        return;
    }
    if !flow.forwarding.sees_replies() {
        if let Some(settings) = tables.settings() {
            trace_places::erase(tables, key, &settings);
        }
        return;
    }
    let is_known = opened.is_some()
        || flow.direction == Direction::ToBackend as u8
        || flow.finished & finished::CLIENT == 0;
    // One that is about to leave its first trace has the clock of another CPU.
    if is_known && tables.now().tick().since(opened.unwrap_or(flow.opened)) < LEAST_TRACED_AGE - 1 {
        return;
    }
    let Some(settings) = tables.settings() else { return };
    let peer = &flow.peer_key(key.protocol);
    let (request, reply) = match Direction::from_u8(flow.direction) {
        Direction::ToBackend => (key, peer),
        Direction::ToClient => (peer, key),
    };
    // In this order, the verifier has half as much to look at in some programs.
    reply_traces::erase(tables, reply, &settings);
    nat_traces::erase(tables, request, &settings);
}
