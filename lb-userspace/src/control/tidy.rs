//! What is looked after from time to time, since nobody tells of it.

use std::{collections::HashMap, time::Duration};

use lb_common::{
    abi::{Lifecycle, maps},
    datapath::trace_sets,
};

use super::{controller::Controller, sweep::Swept};
use crate::dataplane::DataplaneError;

/// How long it is believed what a router said, as long as by the kernel (`mtu_expires`).
const PATH_MTU_LIFE: Duration = Duration::from_secs(600);
/// Sweeps in a row that must find no flow of a retired backend before its index is free.
const IDLE_SWEEPS: u32 = 2;

impl Controller {
    /// Looks after all of it. Returns whether the maps are to change.
    pub(super) fn tidy(&mut self) -> bool {
        let pinned = self.demand_pins();
        self.troubles.note("pins", pinned);
        self.tell_of_lost_lines();
        self.loaded.forget_earlier();
        let attached = self.attach_again();
        let forgotten = self.forget_path_mtus();
        attached || forgotten
    }

    /// Attaches the program again where somebody has detached it, and returns whether somebody has. The picture of the network may be older than when it
    /// was attached, but not the next one.
    fn attach_again(&mut self) -> bool {
        let is_lost = self.interfaces.forget_detached(&self.network, self.loaded.program_id());
        if is_lost {
            let result = self.attach_present();
            self.troubles.note("interfaces", result);
            self.apply_network();
        }
        is_lost
    }

    /// Tells when lines of the log begin to be lost, and when that is over.
    fn tell_of_lost_lines(&mut self) {
        let lost = self.live.lost_lines();
        let before = std::mem::replace(&mut self.lost_lines, lost);
        let result = if lost == before {
            Ok(())
        } else {
            Err("lines of the log are lost: they can't be written, or nobody reads them in time; `lb events` has the latest".to_owned())
        };
        self.troubles.note("log", result);
    }

    /// Demands that what is to outlive this process is still pinned: maps, the program's parts and links.
    ///
    /// # Errors
    ///
    /// It isn't, or not all of it.
    pub(super) fn demand_pins(&self) -> Result<(), String> {
        let path = self.config.pin_path.display();
        if !self.pins.are_mounted() || self.pins.missing().len() == maps::ALL.len() {
            return Err(format!(
                "the pins at {path} are gone, since somebody removed them or unmounted the BPF file system: forwarding \
                 goes on as long as this controller runs, and ends with it; restart it to begin afresh"
            ));
        }
        let missing: Vec<String> = self.pins.missing().into_iter().map(str::to_owned).collect();
        let missing = [missing, self.interfaces.unpinned(&self.pins)].concat();
        if missing.is_empty() {
            return Ok(());
        }
        Err(format!(
            "somebody removed pins at {path}: {}: forwarding goes on as long as this controller runs; when it is \
             restarted they are made anew, and what they held is lost",
            missing.join(", ")
        ))
    }

    /// Forgets what routers said long ago: the way may be another by now. Returns whether there was such.
    fn forget_path_mtus(&mut self) -> bool {
        self.path_mtu_times.retain(|_, heard| heard.elapsed() < PATH_MTU_LIFE);
        let known = self.wanted.path_mtus.len();
        self.wanted.path_mtus.retain(|address, _| self.path_mtu_times.contains_key(address));
        let is_shorter = self.wanted.path_mtus.len() < known;
        if is_shorter {
            self.apply_network();
        }
        is_shorter
    }

    /// Takes in what was found in the tables of flows, and frees the indices of retired backends that no flow
    /// names. Returns whether there are some.
    pub(super) fn take_in_sweep(&mut self, result: Result<Swept, DataplaneError>) -> bool {
        let swept = match result {
            Ok(swept) => swept,
            Err(error) => {
                let trouble = format!("looking for idle flows: {error}");
                self.troubles.note("sweep", Err(trouble));
                return false;
            }
        };
        self.troubles.note("sweep", Ok(()));
        if swept.removed > 0 {
            tracing::debug!(entries = swept.removed, "forgot idle flows");
        }
        self.fullness.note(&swept.usage);
        let retired = |lifecycle| lifecycle == Lifecycle::Retired;
        let mut idle = HashMap::new();
        let before = (self.wanted.backends.len(), self.wanted.services.len());
        self.wanted.backends.retain(|index, state| {
            if !retired(state.info.lifecycle) || swept.backends_in_use.contains(index) {
                return true;
            }
            let sweeps = self.idle_sweeps.get(index).copied().unwrap_or(0) + 1;
            idle.insert(*index, sweeps);
            sweeps < IDLE_SWEEPS
        });
        self.idle_sweeps = idle;
        let backends = &self.wanted.backends;
        self.wanted.services.retain(|index, info| {
            !retired(info.lifecycle) || backends.values().any(|state| state.info.service == *index)
        });
        let is_changed = before != (backends.len(), self.wanted.services.len());
        let settings = &mut self.wanted.settings;
        let before = *settings;
        settings.trace_mask = trace_sets(swept.direct_flows, before.trace_mask + 1) - 1;
        settings.nat_trace_mask = trace_sets(swept.nat_flows, before.nat_trace_mask + 1) - 1;
        let is_changed = is_changed || *settings != before;
        if is_changed {
            self.follow_up();
        }
        is_changed
    }
}
