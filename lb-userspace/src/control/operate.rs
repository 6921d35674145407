//! What operators ask of the controller.

use std::collections::BTreeMap;

use lb_common::abi::{CheckKind, CheckResult, OperatorState, Text};

use super::{
    controller::Controller,
    interfaces::Interfaces,
    preflight,
    state::{Built, State},
};
use crate::{
    api::{Operation, Response},
    config,
};

/// So many differences are told after a reload; events have all of them.
const MOST_SHOWN: usize = 40;

impl Controller {
    /// Does what an operator says of a backend.
    pub(super) fn operate(
        &mut self,
        service: &str,
        backend: &str,
        operation: Operation,
    ) -> Response {
        let Some(index) = self.wanted.find_backend(service, backend) else {
            return Response::Refused(format!(
                "no backend {service}/{backend} in the configuration; `lb list backends` shows those there are"
            ));
        };
        let Some(state) = self.wanted.backends.get_mut(&index) else {
            return Response::Failed("the backend has just gone".to_owned());
        };
        let info = &mut state.info;
        let was_maint = info.operator == OperatorState::Maint;
        match operation {
            Operation::Drain => info.operator = OperatorState::Drain,
            Operation::Maint => info.operator = OperatorState::Maint,
            Operation::Ready => {
                info.operator = OperatorState::Ready;
                info.operator_weight = 0;
            }
            Operation::Weight(weight) if weight > 256 => {
                return Response::Refused(format!("weight {weight} is out of range: 0 to 256"));
            }
            Operation::Weight(weight) => info.operator_weight = u32::from(weight) + 1,
        }
        let is_back = was_maint && info.operator != OperatorState::Maint;
        if is_back && info.check != CheckKind::None {
            // It wasn't checked meanwhile: the next check decides.
            info.result = CheckResult::Unknown;
            info.detail = Text::new("");
        }
        let is_checked = !matches!(info.check, CheckKind::None | CheckKind::Track);
        let held = match info.check {
            _ if info.is_held_by_agent() => ", as its agent says".to_owned(),
            CheckKind::Track if info.agent_wish != OperatorState::Ready => {
                format!(", {}", info.detail.as_str())
            }
            _ => String::new(),
        };
        let text = format!("{service}/{backend}: {}{held}, weight {}", info.state(), info.weight());
        tracing::info!(service, backend, "operator: {operation}");
        if is_back && is_checked {
            self.rested.insert(index);
        } else if is_back {
            self.warm_up(index);
        }
        let result = self.reconcile();
        self.follow_up();
        match result {
            Ok(()) => Response::Done(text),
            Err(error) => Response::Failed(format!("{text}, but the maps lag behind: {error}")),
        }
    }

    /// Applies the configuration file again: all of it, or nothing.
    pub(super) fn reload_counted(&mut self) -> Response {
        let response = self.reload();
        self.live.count_reload(matches!(response, Response::Done(_)));
        match &response {
            // The differences were told.
            Response::Done(text) => {
                tracing::info!("{}", text.lines().next().unwrap_or_default());
            }
            Response::Failed(text) | Response::Refused(text) | Response::Invalid(text) => {
                tracing::error!("the configuration stays as it was: {text}");
            }
            Response::Status(_) | Response::Config(_) | Response::Event(_) => {}
        }
        response
    }

    fn reload(&mut self) -> Response {
        let mut config = match self.source.read() {
            Ok(config) => config,
            Err(invalid) => return Response::Invalid(invalid.to_string()),
        };
        self.names.resolve(&mut config, &self.wanted, Some(&self.config));
        let differences = config::diff(&self.config, &config);
        // Sizes of maps stay as they are, and who wants others is told so.
        let is_fixed =
            |difference: &&config::Difference| difference.restart && !difference.is_of_a_size();
        let fixed: Vec<String> =
            differences.iter().filter(is_fixed).map(ToString::to_string).collect();
        if !fixed.is_empty() {
            return Response::Refused(format!(
                "nothing was changed, since this can't be changed by a reload: {}",
                fixed.join("; ")
            ));
        }
        if let Err(error) = preflight::check_ports(&config) {
            return Response::Refused(format!("{error}; nothing was changed"));
        }
        let (interfaces, all) = self.wanted_interfaces(&config);
        if let Err(why) = all {
            // One that has gone comes back as it went; a new name may be a mistake.
            if config.interfaces != self.config.interfaces {
                return Response::Refused(format!("{why}; nothing was changed"));
            }
        }
        if let Err(error) = self.open_passage(&config, None) {
            return Response::Failed(format!("{error}; nothing was changed"));
        }
        let arranged = match self.arrange(&config) {
            Ok(arranged) => arranged,
            Err(why) => return Response::Refused(format!("{why}; nothing was changed")),
        };
        let before = self.interfaces.indices();
        if let Err(error) = self.interfaces.attach(
            &mut self.loaded,
            &self.pins,
            &config,
            &self.network,
            &interfaces,
        ) {
            // Back to what was: what is attached beyond that is detached again.
            return Response::Failed(match self.attach_present() {
                Ok(()) => format!("{error}; nothing was changed"),
                Err(other) => format!("{error}; and undoing it failed: {other}"),
            });
        }
        for difference in &differences {
            tracing::info!("reload: {difference}");
        }
        let own = |config: &config::Config| {
            let binds = config.services.iter().flat_map(|service| service.binds.clone());
            (config.nat_addresses.clone(), binds.collect::<Vec<_>>())
        };
        if own(&self.config) != own(&config) {
            Interfaces::tell_of_addresses(&config, &self.network, None);
        }
        self.config = config;
        self.watch_file();
        self.ask_names();
        if self.interfaces.indices() != before {
            self.interfaces.warn_of_detours(&self.network);
        }
        let result = self.take_over(arranged);
        if let Err(error) = result {
            return Response::Failed(format!("reloaded, but the maps lag behind: {error}"));
        }
        let mut text = format!(
            "reloaded {}: {}, {}",
            self.source.file.display(),
            self.config.extent(),
            config::counted(differences.len(), "change"),
        );
        for difference in differences.iter().take(MOST_SHOWN) {
            text += &format!("\n{difference}");
        }
        if differences.len() > MOST_SHOWN {
            text += &format!("\n... and {} more", differences.len() - MOST_SHOWN);
        }
        Response::Done(text)
    }

    /// What a configuration asks for here, settled and with its rings.
    ///
    /// # Errors
    ///
    /// It can't be had here.
    pub(super) fn arrange(&self, config: &config::Config) -> Result<Arranged, String> {
        let mut wanted =
            self.wanted.configured(config, self.room).map_err(|error| error.to_string())?;
        let mut members = self.members.clone();
        if config.hash_seed != self.config.hash_seed {
            members.clear();
        }
        let (interfaces, _) = self.wanted_interfaces(config);
        let indices: Vec<u32> = interfaces.iter().map(|(index, _)| *index).collect();
        wanted.apply_network(config, &self.network, &indices);
        wanted.demand_direct_reach(&self.network)?;
        wanted.settle();
        wanted.build_rings(&mut members);
        self.demand_room(&wanted, config).map_err(|error| error.to_string())?;
        Ok((wanted, members))
    }

    /// Makes the maps what was arranged for the configuration in force.
    ///
    /// # Errors
    ///
    /// Something failed.
    pub(super) fn take_over(&mut self, (wanted, members): Arranged) -> Result<(), String> {
        self.wanted = wanted;
        self.members = members;
        let result = self.bring_about();
        self.follow_up();
        result
    }
}

/// What is wanted, and what its rings were built of.
pub(super) type Arranged = (State, BTreeMap<u32, Built>);
