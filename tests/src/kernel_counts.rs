//! What the loaded program has counted.

use anyhow::Result;
use lb_common::abi::Counters;

use crate::kernel::Kernel;

impl Kernel {
    /// Counts of a backend.
    ///
    /// # Errors
    ///
    /// The map can't be read.
    pub fn backend_counters(&self, backend: u32) -> Result<Counters> {
        Ok(self.loaded.maps.backend_count(backend)?)
    }

    /// Connections under way to a backend, as packets have counted them.
    ///
    /// # Errors
    ///
    /// The map can't be read.
    pub fn load(&self, backend: u32) -> Result<i64> {
        Ok(self.loaded.maps.loads.get(&backend, 0)?)
    }

    /// The same of a service.
    ///
    /// # Errors
    ///
    /// The map can't be read.
    pub fn service_load(&self, service: u32) -> Result<i64> {
        Ok(self.loaded.maps.service_loads.get(&service, 0)?)
    }

    /// Counts of a service.
    ///
    /// # Errors
    ///
    /// The map can't be read.
    pub fn service_counters(&self, service: u32) -> Result<Counters> {
        Ok(self.loaded.maps.service_count(service)?)
    }
}
