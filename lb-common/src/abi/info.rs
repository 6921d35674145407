//! What the CLI shows of services and backends, also while no controller runs. The program doesn't
//! read it.

use bytemuck::{Pod, Zeroable};

use super::{Fate, Forwarding, Text, word::word};

/// Stands for "no service" in [`BackendInfo::service`].
pub const UNUSED_SERVICE: u32 = u32::MAX;

word! {
    /// A transport protocol, by its number.
    #[derive(PartialOrd, Ord)]
    Protocol {
        /// Transmission Control Protocol.
        Tcp = 6 "tcp",
        /// User Datagram Protocol.
        Udp = 17 "udp",
    }
}

word! {
    /// Whether an index is in use.
    Lifecycle {
        /// Free to be given out.
        Free = 0 "free",
        /// In the configuration.
        Active = 1 "active",
        /// No longer in the configuration; flows may still name it.
        Retired = 2 "retired",
    }
}

word! {
    /// What an operator has said of a backend.
    OperatorState {
        /// Nothing: the checks decide.
        Ready = 0 "ready",
        /// No new flows; those there are go on.
        Drain = 1 "drain",
        /// Out of service: no new flows, no checks.
        Maint = 2 "maint",
    }
}

word! {
    /// How a backend is checked.
    CheckKind {
        /// Not at all: always up.
        None = 0 "none",
        /// By connecting.
        Tcp = 1 "tcp",
        /// By an HTTP request.
        Http = 2 "http",
    }
}

word! {
    /// What the checks say of a backend.
    CheckResult {
        /// No check has ended yet.
        Unknown = 0 "unknown",
        /// It takes traffic.
        Up = 1 "up",
        /// It doesn't.
        Down = 2 "down",
    }
}

/// A service's name and settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ServiceInfo {
    /// Its name.
    pub name: Text<64>,
    /// Whether the index is in use.
    pub lifecycle: Lifecycle,
    /// How its packets reach the backends.
    pub forwarding: Forwarding,
    /// What its packets are.
    pub protocol: Protocol,
    /// What becomes of the flows of a backend that is down.
    pub on_down: Fate,
    /// Idle timeouts in seconds: half-open, established, closing, and of UDP.
    pub timeouts: [u32; 4],
    /// Number of the list of networks that may and may not connect; 0: everyone may.
    pub access: u32,
    /// How long a client keeps its backend after its last connection, in seconds; 0: it doesn't.
    pub affinity: u32,
}

/// A backend's name, settings and state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BackendInfo {
    /// Its name.
    pub name: Text<64>,
    /// Newest check result in words.
    pub detail: Text<208>,
    /// When it last went up or down, in seconds of Unix time; 0: never.
    pub last_change: u64,
    /// Index of its service, or [`UNUSED_SERVICE`].
    pub service: u32,
    /// Weight in the configuration, 0 to 256.
    pub configured_weight: u32,
    /// Weight that an operator has set, plus one; 0: none.
    pub operator_weight: u32,
    /// How long the newest check took, in microseconds.
    pub check_microseconds: u32,
    /// Slots that it has in its service's ring.
    pub ring_slots: u32,
    /// Whether the index is in use.
    pub lifecycle: Lifecycle,
    /// What an operator has said.
    pub operator: OperatorState,
    /// How it is checked.
    pub check: CheckKind,
    /// What the checks say.
    pub result: CheckResult,
    /// Zero.
    pub reserved: [u32; 4],
}

impl BackendInfo {
    /// Weight in force: the operator's, else the configuration's.
    pub const fn weight(&self) -> u32 {
        match self.operator_weight.checked_sub(1) {
            Some(weight) => weight,
            None => self.configured_weight,
        }
    }

    /// Whether new flows may go to it.
    pub fn takes_new_flows(&self) -> bool {
        self.lifecycle == Lifecycle::Active
            && self.operator == OperatorState::Ready
            && self.result == CheckResult::Up
            && self.weight() > 0
    }

    /// The word for its state: what an operator said before what the checks say.
    pub fn state(&self) -> &'static str {
        if self.lifecycle == Lifecycle::Retired || self.operator == OperatorState::Drain {
            return "drain";
        }
        if self.operator == OperatorState::Maint {
            return "maint";
        }
        if self.result == CheckResult::Up && self.weight() == 0 {
            return "drain";
        }
        self.result.name()
    }
}
