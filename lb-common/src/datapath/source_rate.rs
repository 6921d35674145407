//! How often a source may send a SYN.

use super::{Family, FamilyTables, Reason, parse::Segment};
use crate::abi::Settings;

/// How far a source may be ahead of its rate, in nanoseconds: a second's worth of SYNs at once.
const BURST: u64 = 1_000_000_000;

/// Demands of a SYN, whether or not its flow is known, that its source doesn't send them faster than it may: by direct return, what
/// is known of a flow doesn't tell whether its backend knows it. A bucket of tokens in the form of
/// when the next one is due (the generic cell rate algorithm, ITU-T I.371).
#[inline(always)]
pub(super) fn admit<A: Family, T: FamilyTables<A>>(
    tables: &T,
    settings: &Settings,
    segment: &Segment<A>,
) -> Result<(), Reason> {
    if settings.syn_interval == 0 || !segment.flags.opens() {
        return Ok(());
    }
    let source = segment.key.source.network();
    let now = tables.now().nanoseconds();
    let interval = u64::from(settings.syn_interval);
    let due = tables.source_due(source).unwrap_or(now).max(now);
    if due - now + interval > BURST {
        return Err(Reason::RateLimited);
    }
    tables.set_source_due(source, due + interval);
    Ok(())
}
