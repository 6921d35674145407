//! What agents say of their backends.

use std::{net::SocketAddr, time::Duration};

use lb_common::abi::{BackendInfo, CheckResult, OperatorState, Text};

use super::{
    checks::phase,
    controller::{Controller, Event},
};
use crate::{
    config::{Agent, Check},
    health::{self, Said, Task, Turn, Wish},
};

/// An agent, where it listens, and what asks it.
pub(super) type Asked = ((Agent, SocketAddr), Task);

impl Controller {
    /// Begins to ask an agent.
    pub(super) fn ask_agent(
        &self,
        index: u32,
        (agent, address): (Agent, SocketAddr),
        check: &Check,
    ) -> Asked {
        let turn = Turn { phase: phase(index), first_round: Duration::ZERO, is_suspect: false };
        let events = self.events.clone();
        let report = move |said| {
            let events = events.clone();
            async move {
                // Fails only while the controller stops.
                let _: Result<(), _> = events.send(Event::AgentSaid(index, said)).await;
            }
        };
        let task = health::ask(agent.clone(), address, check.timeout, turn, report);
        ((agent, address), task)
    }

    /// Takes in what an agent said. Returns whether that is new.
    pub(super) fn take_in_agent(&mut self, index: u32, said: Result<Said, String>) -> bool {
        if !self.agents.contains_key(&index) {
            return false;
        }
        let name = self.wanted.name_of(index);
        let silent =
            |why| format!("{name}: nothing from its agent, and what it said last holds: {why}");
        let said = said.map_err(silent);
        self.troubles
            .note(format!("agent of {name}"), said.as_ref().map(drop).map_err(Clone::clone));
        let Ok(said) = said else { return false };
        let Some(state) = self.wanted.backends.get_mut(&index) else { return false };
        let info = &mut state.info;
        let before = *info;
        if let Some(is_up) = said.is_up {
            info.agent = if is_up { CheckResult::Up } else { CheckResult::Down };
        }
        if let Some(wish) = said.wish {
            info.agent_wish = match wish {
                Wish::Ready => OperatorState::Ready,
                Wish::Drain => OperatorState::Drain,
                Wish::Maint => OperatorState::Maint,
            };
        }
        if let Some(percent) = said.percent {
            info.agent_percent = u32::from(percent) + 1;
        }
        info.agent_reason = Text::new(said.reason.as_deref().unwrap_or_default());
        // A reason alone, such as how long it will take, may be another each time.
        if (BackendInfo { agent_reason: before.agent_reason, ..*info }) == before {
            return *info != before;
        }
        let service = self.wanted.services.get(&info.service);
        let service = service.map_or("", |service| service.name.as_str());
        let (backend, reason) = (info.name, said.reason.as_deref().unwrap_or(""));
        let (backend, what) =
            (backend.as_str(), format!("its agent: {}, weight {}", info.state(), info.weight()));
        if info.is_held_by_agent() {
            tracing::warn!(service, backend, reason, "{what}");
        } else {
            tracing::info!(service, backend, reason, "{what}");
        }
        let is_out = |info: &BackendInfo| {
            info.agent == CheckResult::Down || info.agent_wish == OperatorState::Maint
        };
        let comes_back = is_out(&before) && !is_out(info) && info.takes_new_flows();
        if comes_back {
            self.warm_up(index);
        }
        true
    }
}
