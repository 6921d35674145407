//! Everything on one screen.

use serde::Serialize;

use super::{BackendRecord, Overview, ServiceRecord};
use crate::{
    api::{ABSENT, ControllerStatus, InterfaceStatus, NO_LINK},
    dataplane::{DataplaneError, Maps},
};

/// The controller, services and backends at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Nothing while none runs.
    pub controller: Option<ControllerStatus>,
    /// Services.
    pub services: Vec<ServiceRecord>,
    /// Backends.
    pub backends: Vec<BackendRecord>,
    /// Flows under way.
    pub flows: u64,
}

impl Status {
    /// Reads services and backends from the maps.
    ///
    /// # Errors
    ///
    /// A map can't be read.
    pub fn read(maps: &Maps, controller: Option<ControllerStatus>) -> Result<Self, DataplaneError> {
        let overview = Overview::read(maps)?;
        let services = overview.services(maps)?;
        Ok(Self {
            controller,
            backends: overview.backends(maps)?,
            flows: services.iter().map(|service| service.flows).sum(),
            services,
        })
    }

    /// Why new connections can't all be served, in words; `None`: they can. The program must be attached wherever it should
    /// be, where there is a link, and every service must have a backend.
    pub fn lacks(&self) -> Option<String> {
        let Some(controller) = &self.controller else {
            return Some("the controller's loop doesn't answer".to_owned());
        };
        let is_without_link = |interface: &InterfaceStatus| {
            interface.cause.as_deref().is_some_and(|cause| cause.starts_with(NO_LINK))
        };
        // Of several links, one may be a spare.
        let are_all_down = controller.interfaces.iter().all(is_without_link);
        let is_lame = |interface: &&InterfaceStatus| interface.mode == ABSENT || are_all_down;
        if controller.interfaces.is_empty() {
            return Some("the program isn't attached".to_owned());
        }
        if let Some(lame) = controller.interfaces.iter().find(is_lame) {
            let why = lame.cause.as_deref().unwrap_or(ABSENT);
            return Some(format!("interface {}: {why}", lame.name));
        }
        let is_lost =
            |service: &&ServiceRecord| service.backends_total > 0 && service.backends_up == 0;
        let lost = self.services.iter().find(is_lost)?;
        Some(format!("service {} has no backend", lost.name))
    }
}
