//! The controller and command line of lb.
//!
//! * [`config`] reads and validates `lb.toml`.
//! * [`control`] is the controller: desired state, plan, and the loop that applies it.
//! * [`health`] checks backends; [`netlink`] follows routes and neighbours.
//! * [`dataplane`] loads the program and reaches its maps.
//! * [`observe`] turns maps into what is shown: by [`cli`], the commands, and [`admin`], the pages.
//! * [`confine`] gives up privileges.
//! * [`api`] is the control socket, and [`journal`] what it tells of what happened; [`log`] says it on standard error.

pub mod admin;
pub mod api;
pub mod cli;
pub mod config;
pub mod confine;
pub mod control;
pub mod dataplane;
pub mod health;
pub mod journal;
pub mod log;
pub mod netlink;
pub mod observe;
