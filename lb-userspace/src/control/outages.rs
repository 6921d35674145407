//! Services that no backend takes connections for, told when that begins and when it is over.

use std::collections::BTreeMap;

use lb_common::abi::{CheckResult, Lifecycle};

use super::controller::Controller;
use crate::config::AllDown;

/// What the backends of a service are like.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// One takes new flows.
    takes: bool,
    /// One hasn't been checked yet, so it isn't known.
    waits: bool,
}

impl Controller {
    /// Tells what there is to tell.
    pub(super) fn tell_of_outages(&mut self) {
        let active = self.wanted.services.iter();
        let active = active.filter(|(_, info)| info.lifecycle == Lifecycle::Active);
        let mut seen: BTreeMap<u32, Seen> =
            active.map(|(index, _)| (*index, Seen::default())).collect();
        for state in self.wanted.backends.values() {
            if let Some(seen) = seen.get_mut(&state.info.service) {
                seen.takes |= state.info.takes_new_flows();
                seen.waits |= state.info.is_wanted() && state.info.result == CheckResult::Unknown;
            }
        }
        for (index, Seen { takes, waits }) in seen {
            if waits && !takes {
                continue;
            }
            let name = self.wanted.services.get(&index).map_or("", |info| info.name.as_str());
            let outage = || {
                let policy = self.wanted.policies.get(&index).copied().unwrap_or_default();
                let fate = match policy.on_all_down {
                    AllDown::Refuse => "are refused",
                    AllDown::Drop => "are dropped",
                    AllDown::Keep => "go to all that are down, by on_all_down = \"keep\"",
                };
                format!("service {name} has no backend: new connections {fate}")
            };
            let result = if takes { Ok(()) } else { Err(outage()) };
            self.troubles.note(format!("service {name}"), result);
        }
    }
}
