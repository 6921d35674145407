//! The control socket: requests and answers, an object a line.

mod client;
mod peer;
mod server;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::journal::Event;

pub use client::{ClientError, call, events};
pub use server::{Call, serve};

/// What a client asks of the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields, tag = "command")]
pub enum Request {
    /// How it is.
    Status,
    /// Apply the configuration file again.
    Reload,
    /// Change what an operator says of a backend.
    Operate {
        /// Its service.
        service: String,
        /// Its name.
        backend: String,
        /// What is said.
        operation: Operation,
    },
    /// The text of the configuration in force.
    Config,
    /// What happened lately: each event is an answer of its own.
    Events {
        /// And what happens from now on, until the client closes the connection.
        follow: bool,
    },
}

/// What an operator says of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// No new flows.
    Drain,
    /// No new flows, and no checks.
    Maint,
    /// As the checks and the configuration say.
    Ready,
    /// Another weight, 0 to 256.
    Weight(u16),
}

impl Request {
    /// Whether it changes what the controller does; in words.
    fn change(&self) -> Option<String> {
        match self {
            Self::Reload => Some("reload".to_owned()),
            Self::Operate { service, backend, operation } => {
                // They may be anything that a client wrote.
                Some(format!("{operation} {}/{}", service.escape_debug(), backend.escape_debug()))
            }
            Self::Status | Self::Config | Self::Events { .. } => None,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drain => formatter.write_str("drain"),
            Self::Maint => formatter.write_str("maint"),
            Self::Ready => formatter.write_str("ready"),
            Self::Weight(weight) => write!(formatter, "weight {weight}"),
        }
    }
}

/// The controller's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// It is done; in words.
    Done(String),
    /// It isn't; why.
    Failed(String),
    /// It isn't, because of what was asked; why.
    Refused(String),
    /// The configuration file can't be used, and nothing was changed; its problems.
    Invalid(String),
    /// How the controller is.
    Status(ControllerStatus),
    /// The text of the configuration in force.
    Config(String),
    /// Something that happened.
    Event(Event),
}

/// How the controller is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerStatus {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// For how long it has run, in seconds.
    pub uptime_s: u64,
    /// The configuration file in force.
    pub config: String,
    /// Where the program is attached.
    pub interfaces: Vec<InterfaceStatus>,
}

/// What stands for the mode of an interface that is wanted but not there.
pub const ABSENT: &str = "absent";

/// An interface that the program is attached to, or should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// `native`, `generic` or [`ABSENT`].
    pub mode: String,
    /// Why it isn't native, though that was tried, or why it is absent; first, that it has [`NO_LINK`].
    pub cause: Option<String>,
}

/// What is said of an interface that nothing comes or goes through at the moment.
pub const NO_LINK: &str = "no link";
