//! Health checks: which there are to be, and what their results mean.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lb_common::abi::{BackendInfo, CheckResult, Lifecycle, OperatorState, Text};

use super::{
    controller::{Controller, Event},
    plan::Change,
    state::{BackendState, State},
    store,
};
use crate::{
    config::{self, Check, Config},
    dataplane::{DataplaneError, Detours, attach_until_dropped},
    health::{Cause, Checker, Passage, Report, Target, Turn, Verdict, Vip},
    netlink::{Network, NextHop, Vantage},
};

/// A backend's place among others, from 0 to 1: the golden ratio spreads any number of them evenly.
pub(super) fn phase(index: u32) -> f64 {
    (f64::from(index) * 0.618_034).fract()
}

/// Where many backends begin to be checked, they take turns: one in so long.
const FIRST_PACE: Duration = Duration::from_micros(200);

/// A backend that is checked.
#[derive(Debug)]
pub(super) struct Checked {
    /// How, and where.
    of: (Arc<Check>, Target),
    /// The number of its checker, by which its reports are told from those of one before.
    number: u64,
    /// Checks until this is dropped.
    _checker: Checker,
}

impl Controller {
    /// Starts and stops checks, and watches addresses, as the state says.
    pub(super) fn follow_up(&mut self) {
        let mut checkers = HashMap::with_capacity(self.checkers.len());
        let mut agents = HashMap::with_capacity(self.agents.len());
        let mut started = Vec::new();
        let mut addresses = Vec::with_capacity(self.wanted.backends.len());
        let by_name: HashMap<&str, &config::Service> =
            self.config.services.iter().map(|service| (service.name.as_str(), service)).collect();
        let configured: HashMap<u32, (&config::Service, HashMap<&str, &config::Backend>)> = self
            .wanted
            .services
            .iter()
            .filter_map(|(index, info)| {
                let service = *by_name.get(info.name.as_str())?;
                let is_asked =
                    service.check.kind != config::CheckKind::None || service.check.agent.is_some();
                let backends = service.backends.iter().filter(|_| is_asked);
                let backends = backends.map(|backend| (backend.name.as_str(), backend)).collect();
                Some((*index, (service, backends)))
            })
            .collect();
        let mut bound: HashMap<u32, Vec<SocketAddr>> = HashMap::new();
        for (bind, service) in &self.wanted.binds {
            bound.entry(service.index).or_default().push(bind.address);
        }
        let all_bound = self.wanted.bound_addresses();
        for (index, state) in &self.wanted.backends {
            if state.address().ip().is_unspecified() {
                continue;
            }
            addresses.push(state.address().ip());
            let Some((service, backends)) = configured.get(&state.info.service) else { continue };
            let Some(backend) = backends.get(state.info.name.as_str()) else { continue };
            if state.info.lifecycle != Lifecycle::Active || backend.track.is_some() {
                continue;
            }
            if let Some(agent) = &service.check.agent {
                let host = backend.check_address.unwrap_or(state.address().ip());
                let wanted = (agent.clone(), SocketAddr::new(host, agent.port));
                let running = self.agents.remove(index).filter(|(running, _)| *running == wanted);
                let running =
                    running.unwrap_or_else(|| self.ask_agent(*index, wanted, &service.check));
                agents.insert(*index, running);
            }
            // One at this host's own address would pass, but gets nothing of the clients'.
            let checked = state.info.operator != OperatorState::Maint
                && service.check.kind != config::CheckKind::None
                && !self.network.is_own(state.address().ip());
            if !checked {
                continue;
            }
            let bound = bound.get(&state.info.service).map_or(&[][..], Vec::as_slice);
            let bound = (bound, &all_bound);
            let port = backend.check_port.or(service.check.port);
            let place = (backend.check_address, port);
            let target = self.wanted.check_target(*index, state, place, bound, &self.network);
            let wanted = (Arc::clone(&service.check), target);
            match self.checkers.remove(index).filter(|running| running.of == wanted) {
                Some(running) => drop(checkers.insert(*index, running)),
                None => started.push((*index, wanted, state.info.result)),
            }
        }
        let pace = FIRST_PACE * u32::try_from(started.len()).unwrap_or(u32::MAX);
        for (index, (check, target), result) in started {
            let verdict = match result {
                CheckResult::Up => Verdict::Up,
                CheckResult::Drain => Verdict::Draining,
                CheckResult::Down => Verdict::Down,
                _ => Verdict::Unknown,
            };
            let is_suspect = self.observed.suspects.remove(&index);
            let first_round = if is_suspect { Duration::ZERO } else { pace.min(check.interval) };
            let turn = Turn { phase: phase(index), first_round, is_suspect };
            let events = self.events.clone();
            let passage = self.passage.as_ref().map(|(passage, _)| Arc::clone(passage));
            let (its_check, its_target) = (Arc::clone(&check), target.clone());
            self.started_checkers += 1;
            let number = self.started_checkers;
            let way = (passage, self.cut_off.of(index));
            let report = move |report| {
                let events = events.clone();
                async move {
                    // Fails only while the controller stops.
                    let _: Result<(), _> = events.send(Event::Checked(index, number, report)).await;
                }
            };
            let checker = Checker::start(its_check, its_target, way, verdict, turn, report);
            checkers.insert(index, Checked { of: (check, target), number, _checker: checker });
        }
        // What is left are those that are checked no longer.
        for index in self.checkers.keys() {
            let known = self.wanted.backends.get(index).map(|state| state.info);
            let Some(info) = known.filter(|info| info.lifecycle == Lifecycle::Retired) else {
                continue;
            };
            let service = self.wanted.services.get(&info.service);
            let service = service.map_or("", |service| service.name.as_str());
            self.live.forget(service, info.name.as_str(), &Cause::ALL.map(Cause::name));
        }
        self.observed.suspects.clear();
        self.watch_observed();
        self.checkers = checkers;
        self.agents = agents;
        let gone = self.unchecked.keys().filter(|index| !self.checkers.contains_key(index));
        for index in gone.copied().collect::<Vec<_>>() {
            self.note_local(index, None);
        }
        addresses.sort();
        addresses.dedup();
        self.wish.send_if_modified(|wish| {
            let changed = wish.addresses != addresses;
            wish.addresses = addresses;
            changed
        });
    }

    /// Takes in the result of a check, by the checker of that number. Returns whether it makes a difference to packets; if not, what is shown of
    /// it is written at once, since there may be thousands of checks a second.
    pub(super) fn record(&mut self, index: u32, checker: u64, report: &Report) -> bool {
        // What was still under way when that checking ended.
        if self.checkers.get(&index).is_none_or(|running| running.number != checker) {
            return false;
        }
        let is_local = report.cause == Some(Cause::Local);
        self.note_local(index, is_local.then_some(report.detail.as_str()));
        let Some(state) = self.wanted.backends.get_mut(&index) else { return false };
        let result = match report.verdict {
            Verdict::Unknown => CheckResult::Unknown,
            Verdict::Up => CheckResult::Up,
            Verdict::Draining => CheckResult::Drain,
            Verdict::Down => CheckResult::Down,
        };
        state.info.detail = Text::new(&report.detail);
        state.info.check_microseconds =
            u32::try_from(report.duration.as_micros()).unwrap_or(u32::MAX);
        let service = self.wanted.services.get(&state.info.service);
        let service = service.map_or("", |service| service.name.as_str());
        let backend = state.info.name;
        let cause = report.cause.map(Cause::name);
        self.live.count_check(service, backend.as_str(), report.duration, cause);
        let before = state.info.result;
        if before != result {
            state.info.result = result;
            state.info.last_change =
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let backend = backend.as_str();
            match result {
                CheckResult::Up => tracing::info!(service, backend, detail = report.detail, "up"),
                CheckResult::Drain => {
                    tracing::info!(service, backend, detail = report.detail, "drain");
                }
                _ => tracing::warn!(service, backend, detail = report.detail, "down"),
            }
            let was_out = self.rested.remove(&index) || before == CheckResult::Down;
            if was_out && result == CheckResult::Up {
                self.warm_up(index);
            }
            return true;
        }
        // All the rest of it may still wait for its ring.
        let BackendInfo { detail, check_microseconds, .. } = state.info;
        let is_shown = self.there.backends.get(&index).is_some_and(|there| {
            BackendInfo { detail, check_microseconds, ..there.info } == state.info
        });
        if is_shown {
            let change = Change::BackendInfo(index, Box::new(state.info));
            // If it fails, the next comparison finds it.
            return store::apply(&change, &mut self.loaded.maps, &mut self.there).is_err();
        }
        true
    }

    /// Notes whether this host could make a check at all, and tells when it can't make some, and when it can again: once for
    /// each reason. `local` is why not.
    fn note_local(&mut self, index: u32, local: Option<&str>) {
        if self.unchecked.get(&index).map(String::as_str) == local {
            return;
        }
        let before = self.unchecked.remove(&index);
        if let Some(why) = before
            && !self.unchecked.values().any(|other| *other == why)
        {
            self.troubles.note(format!("checks: {why}"), Ok(()));
        }
        let Some(why) = local else { return };
        if !self.unchecked.values().any(|other| other == why) {
            let name = self.wanted.name_of(index);
            let trouble = format!("backends aren't checked any longer, {name} for one: {why}");
            self.troubles.note(format!("checks: {why}"), Err(trouble));
        }
        self.unchecked.insert(index, why.to_owned());
    }

    /// Sees to it that the checks which a configuration asks for can be made, from `vantage` if it is there.
    pub(super) fn open_passage(
        &mut self,
        config: &Config,
        vantage: Option<Vantage>,
    ) -> Result<(), DataplaneError> {
        if self.passage.is_some() || !needs_vantage(config) {
            return Ok(());
        }
        let Some(vantage) = vantage else {
            return Err(DataplaneError::system("checks of backends by direct return")(
                io::Error::other(
                    "they need a network namespace, which is made when `lb run` starts: restart it",
                ),
            ));
        };
        let link = attach_until_dropped(self.loaded.program()?, vantage.interface)?;
        let detours = Arc::new(Detours::open(&self.pins)?);
        self.wanted.check_interface = Some(vantage.interface);
        self.passage = Some((Arc::new(Passage { vantage, detours }), link));
        Ok(())
    }
}

/// Whether a configuration asks for checks that come from a namespace of their own.
pub(super) fn needs_vantage(config: &Config) -> bool {
    config.services.iter().any(|service| {
        !service.forwarding.sees_replies() && service.check.kind != config::CheckKind::None
    })
}

impl State {
    /// Where a backend is checked: by direct return, at its service's addresses, unless there is none at
    /// the moment.
    /// `place` are an address and a port that are checked instead.
    fn check_target(
        &self,
        index: u32,
        state: &BackendState,
        place: (Option<IpAddr>, Option<u16>),
        (bound, all_bound): (&[SocketAddr], &HashSet<IpAddr>),
        network: &Network,
    ) -> Target {
        let (address, port) = place;
        let with_port = |address: SocketAddr| {
            SocketAddr::new(address.ip(), port.unwrap_or_else(|| address.port()))
        };
        let own = state.address();
        let forwarding = state.backend.forwarding;
        let itself = with_port(SocketAddr::new(address.unwrap_or(own.ip()), own.port()));
        if forwarding.sees_replies() || address.is_some() {
            return Target::Own(itself);
        }
        let hop = network.next_hops.get(&own.ip()).and_then(|hop| hop.as_ref().ok());
        let vips: Vec<Vip> = bound
            .iter()
            .map(|address| {
                let source = self.check_source(network, hop, address.is_ipv4(), all_bound);
                Vip { address: with_port(*address), source }
            })
            .collect();
        if vips.is_empty() {
            return Target::Own(itself);
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
        bound: &HashSet<IpAddr>,
    ) -> Option<IpAddr> {
        if let Some(hop) = hop.filter(|hop| hop.source.is_ipv4() == is_ipv4) {
            return Some(self.own_source(network, hop, bound));
        }
        let leads_there = |interface| hop.is_some_and(|hop| hop.interface == interface);
        let mut any = self.unbound(network, is_ipv4, bound).peekable();
        let first = any.peek().copied();
        any.find(|(interface, _)| leads_there(*interface)).or(first).map(|(_, ip)| ip)
    }
}
