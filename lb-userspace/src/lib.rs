//! The controller and command line of lb.

pub mod dataplane;
