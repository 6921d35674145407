//! Everything on one screen.

use serde::Serialize;

use super::{BackendRecord, Overview, ServiceRecord};
use crate::{
    api::{ABSENT, ControllerStatus},
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

    /// Whether the program is attached wherever it should be, and every service has a backend for new connections.
    pub fn is_ready(&self) -> bool {
        let is_attached = |status: &ControllerStatus| {
            !status.interfaces.is_empty()
                && status.interfaces.iter().all(|interface| interface.mode != ABSENT)
        };
        self.controller.as_ref().is_some_and(is_attached)
            && self
                .services
                .iter()
                .all(|service| service.backends_total == 0 || service.backends_up > 0)
    }
}
