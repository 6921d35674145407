//! What is looked after from time to time, since nobody tells of it.

use std::time::Duration;

use lb_common::abi::maps;

use super::controller::Controller;

/// How long it is believed what a router said, as long as by the kernel (`mtu_expires`).
const PATH_MTU_LIFE: Duration = Duration::from_secs(600);

impl Controller {
    /// Looks after all of it.
    pub(super) fn tidy(&mut self) {
        let pinned = self.demand_pins();
        self.troubles.note("pins", pinned);
        self.attach_again();
        self.tell_of_lost_lines();
        self.forget_path_mtus();
        self.loaded.forget_earlier();
    }

    /// Attaches the program again where somebody has detached it. The picture of the network may be older than when it
    /// was attached, but not the next one.
    fn attach_again(&mut self) {
        let is_lost = self.interfaces.forget_detached(&self.network, self.loaded.program_id());
        if is_lost {
            let result = self.attach_present();
            self.troubles.note("interfaces", result);
            self.apply_network();
        }
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

    /// Forgets what routers said long ago: the way may be another by now.
    fn forget_path_mtus(&mut self) {
        self.path_mtu_times.retain(|_, heard| heard.elapsed() < PATH_MTU_LIFE);
        let known = self.wanted.path_mtus.len();
        self.wanted.path_mtus.retain(|address, _| self.path_mtu_times.contains_key(address));
        if self.wanted.path_mtus.len() < known {
            self.apply_network();
        }
    }
}
