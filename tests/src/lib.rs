//! What the tests of lb share.
//!
//! * [`frame`] builds frames, and reads them with code that shares nothing with the data path.
//! * [`host`] and [`kernel`] run the same packet logic over in-memory tables and in the kernel.
//! * [`world`] is what both are set up with.

pub mod frame;
pub mod host;
pub mod kernel;
pub mod world;
