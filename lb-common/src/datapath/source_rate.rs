//! How often a source may open connections.

use super::{Family, FamilyTables, Reason};
use crate::abi::Settings;

/// How far a source may be ahead of its rate, in nanoseconds: a second's worth of SYNs at once.
const BURST: u64 = 1_000_000_000;

/// Demands that the source doesn't open connections faster than it may. A bucket of tokens in the form of
/// when the next one is due (the generic cell rate algorithm, ITU-T I.371).
#[inline(always)]
pub(super) fn admit<A: Family, T: FamilyTables<A>>(
    tables: &T,
    settings: &Settings,
    source: A,
) -> Result<(), Reason> {
    if settings.syn_interval == 0 {
        return Ok(());
    }
    let source = source.network();
    let now = tables.now().nanoseconds();
    let interval = u64::from(settings.syn_interval);
    let due = tables.source_due(source).unwrap_or(now).max(now);
    if due - now + interval > BURST {
        return Err(Reason::RateLimited);
    }
    tables.set_source_due(source, due + interval);
    Ok(())
}
