//! The controller: from configuration, check results, the network and operators' commands to what
//! the maps hold.
//!
//! [`state`] is what is wanted and what is there, as values; [`configure`], [`ring`] and [`plan`]
//! decide, without a clock or a socket; [`store`] carries out; [`controller`] is the one loop that
//! events go through, and the only one that writes maps; [`start`] sets it up.

mod agents;
mod checks;
pub mod configure;
mod controller;
mod cut_off;
mod file_watch;
mod interfaces;
mod names;
mod observe;
mod operate;
mod outages;
mod path_mtu;
pub mod plan;
mod pools;
mod preflight;
mod prepare;
mod reach;
mod read;
pub mod ring;
mod room;
mod service_manager;
mod shortcuts;
pub mod space;
mod start;
pub mod state;
mod store;
mod sweep;
mod tidy;
mod troubles;
mod warming;
mod watch;

pub use preflight::PreflightError;
pub use prepare::{Overrides, Prepared, lock, prepare};
pub use start::{StartError, run};

/// Addresses that full NAT can send from, over the life of the maps.
const NAT_SOURCES: u32 = 256;
/// Networks of a family in the lists of who may connect. They take memory only where there are any.
const NETWORKS: u32 = 65_536;
/// Sources of a family whose SYNs are counted.
const SOURCES: u32 = 65_536;
