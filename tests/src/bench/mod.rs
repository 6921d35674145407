//! What `cargo xtask bench` measures, and how it is shown.

mod bed;
pub mod control;
pub mod network;
pub mod packets;
mod report;
mod systems;

pub use report::{Bar, Report};
