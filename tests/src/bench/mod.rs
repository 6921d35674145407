//! What `cargo xtask bench` measures, and how it is shown.

use std::{panic, thread};

use anyhow::Result;

mod bed;
mod cases;
pub mod control;
pub mod network;
pub mod packets;
pub mod rate;
mod report;
mod systems;

pub use report::{Bar, Report};

/// Does something in a thread of its own: one that runs packets through the program stays on its CPU from then on, and so would
/// all that it starts.
///
/// # Errors
///
/// It fails.
pub fn apart<T: Send>(action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let done = thread::scope(|scope| scope.spawn(action).join());
    done.unwrap_or_else(|panicked| panic::resume_unwind(panicked))
}
