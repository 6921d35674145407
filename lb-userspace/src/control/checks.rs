//! Health checks: which there are to be, and what their results mean.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use lb_common::abi::{CheckResult, Lifecycle, OperatorState, Text};

use super::{
    controller::{Controller, Event},
    state::{BackendState, State},
};
use crate::{
    config::{self, Config},
    dataplane::{DataplaneError, Detours, attach_until_dropped},
    health::{Checker, Passage, Report, Target, Verdict, Vip},
    netlink::{Network, NextHop, Vantage},
};

impl Controller {
    /// Starts and stops checks, and watches addresses, as the state says.
    pub(super) fn follow_up(&mut self) {
        let mut checkers = HashMap::new();
        let mut addresses = Vec::new();
        for (index, state) in &self.wanted.backends {
            addresses.push(state.address().ip());
            let configured = self.wanted.services.get(&state.info.service).and_then(|service| {
                self.config.services.iter().find(|known| known.name == service.name.as_str())
            });
            let Some(service) = configured else { continue };
            let checked = state.info.lifecycle == Lifecycle::Active
                && state.info.operator != OperatorState::Maint
                && service.check.kind != config::CheckKind::None;
            if !checked {
                continue;
            }
            let target = self.wanted.check_target(*index, state, &self.network);
            let wanted = (service.check.clone(), target);
            let running = self.checkers.remove(index).filter(|(running, _)| *running == wanted);
            let running = running.unwrap_or_else(|| {
                let events = self.events.clone();
                let index = *index;
                let verdict = match state.info.result {
                    CheckResult::Up => Verdict::Up,
                    CheckResult::Down => Verdict::Down,
                    _ => Verdict::Unknown,
                };
                // The golden ratio spreads any number of backends evenly.
                let phase = (f64::from(index) * 0.618_034).fract();
                let checker = Checker::start(
                    service.check.clone(),
                    wanted.1.clone(),
                    self.passage.as_ref().map(|(passage, _)| Arc::clone(passage)),
                    verdict,
                    phase,
                    move |report| {
                        let events = events.clone();
                        async move {
                            // Fails only while the controller stops.
                            let _: Result<(), _> = events.send(Event::Checked(index, report)).await;
                        }
                    },
                );
                (wanted, checker)
            });
            checkers.insert(*index, running);
        }
        self.checkers = checkers;
        addresses.sort();
        addresses.dedup();
        self.addresses.send_if_modified(|known| {
            let changed = *known != addresses;
            *known = addresses;
            changed
        });
    }

    /// Takes in the result of a check.
    pub(super) fn record(&mut self, index: u32, report: &Report) {
        // A check that was under way when checking ended.
        if !self.checkers.contains_key(&index) {
            return;
        }
        let Some(state) = self.wanted.backends.get_mut(&index) else { return };
        let result = match report.verdict {
            Verdict::Unknown => CheckResult::Unknown,
            Verdict::Up => CheckResult::Up,
            Verdict::Down => CheckResult::Down,
        };
        state.info.detail = Text::new(&report.detail);
        state.info.check_microseconds =
            u32::try_from(report.duration.as_micros()).unwrap_or(u32::MAX);
        if state.info.result != result {
            state.info.result = result;
            state.info.last_change =
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let service = self.wanted.services.get(&state.info.service);
            let service = service.map_or("", |service| service.name.as_str());
            let backend = state.info.name.as_str();
            if result == CheckResult::Up {
                tracing::info!(service, backend, detail = report.detail, "up");
            } else {
                tracing::warn!(service, backend, detail = report.detail, "down");
            }
        }
    }

    /// Sees to it that the checks which a configuration asks for can be made.
    pub(super) fn open_passage(&mut self, config: &Config) -> Result<(), DataplaneError> {
        let needs_it = |service: &config::Service| {
            !service.forwarding.sees_replies() && service.check.kind != config::CheckKind::None
        };
        if self.passage.is_some() || !config.services.iter().any(needs_it) {
            return Ok(());
        }
        let failed = DataplaneError::system(
            "a network namespace, from which backends of direct return are checked (CAP_SYS_ADMIN)",
        );
        let vantage = Vantage::new().map_err(failed)?;
        let link = attach_until_dropped(self.loaded.program()?, vantage.interface)?;
        let detours = Arc::new(Detours::open(&self.pins)?);
        self.wanted.check_interface = Some(vantage.interface);
        self.passage = Some((Arc::new(Passage { vantage, detours }), link));
        Ok(())
    }
}

impl State {
    /// Where a backend is checked: by direct return, at its service's addresses, unless there is none at
    /// the moment.
    fn check_target(&self, index: u32, state: &BackendState, network: &Network) -> Target {
        let own = state.address();
        let forwarding = state.backend.forwarding;
        if forwarding.sees_replies() {
            return Target::Own(own);
        }
        let hop = network.next_hops.get(&own.ip()).and_then(|hop| hop.as_ref().ok());
        let binds = self.binds.iter().filter(|(_, bound)| bound.index == state.info.service);
        let vips: Vec<Vip> = binds
            .map(|(bind, _)| {
                let address = bind.address;
                let source = self.check_source(network, hop, address.is_ipv4());
                Vip { address, source }
            })
            .collect();
        if vips.is_empty() {
            return Target::Own(own);
        }
        Target::Vips { backend: index, forwarding, vips }
    }

    /// The address that a backend which is reached by `hop` can answer to: of the interface that leads
    /// there, if it has one of the family.
    fn check_source(
        &self,
        network: &Network,
        hop: Option<&NextHop>,
        is_ipv4: bool,
    ) -> Option<IpAddr> {
        if let Some(hop) = hop.filter(|hop| hop.source.is_ipv4() == is_ipv4) {
            return Some(self.own_source(network, hop));
        }
        let leads_there = |interface| hop.is_some_and(|hop| hop.interface == interface);
        let mut any = self.unbound(network, is_ipv4).peekable();
        let first = any.peek().copied();
        any.find(|(interface, _)| leads_there(*interface)).or(first).map(|(_, ip)| ip)
    }
}
