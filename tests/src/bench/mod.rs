//! What `cargo xtask bench` measures, and how it is shown.

pub mod packets;
mod report;

pub use report::{Bar, Report};
