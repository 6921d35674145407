//! Names and paths of the lab.

use std::path::{Path, PathBuf};

use xtask::netns::Namespace;

use crate::build;

/// What the lab leaves on the file system lies here.
pub(super) const DIRECTORY: &str = "/run/lb-lab";
/// The controller's socket: the usual one, so that `lb` finds it by itself.
pub(super) const SOCKET: &str = "/run/lb/lb.sock";
/// The pins: the usual ones.
pub(super) const PINS: &str = "/sys/fs/bpf/lb";
/// This host's interface.
pub(super) const HOST_INTERFACE: &str = "lb-lab0";
/// Namespace of the switch.
pub(super) const SWITCH: &str = "lb-lab-switch";
/// Namespace of the balancer.
pub(super) const BALANCER: &str = "lb-lab-lb";
/// What the controller's process is called.
pub(super) const CONTROLLER: &str = "lb";
/// The backends.
pub(super) const BACKENDS: [&str; 3] = ["mgmt01", "mgmt02", "mgmt03"];

/// A file of the lab's.
pub(super) fn file(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// A backend's namespace.
pub(super) fn backend_namespace(name: &str) -> Namespace {
    Namespace::existing(&format!("lb-lab-{name}"))
}

/// All of the lab's namespaces.
pub(super) fn namespaces() -> Vec<Namespace> {
    let mut namespaces = vec![Namespace::existing(BALANCER)];
    namespaces.extend(BACKENDS.map(backend_namespace));
    namespaces.push(Namespace::existing(SWITCH));
    namespaces
}

/// The program that the lab runs.
pub(super) fn lb() -> PathBuf {
    build::target_directory().join("release/lb")
}
