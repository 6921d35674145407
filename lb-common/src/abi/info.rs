//! What the CLI shows of services and backends, also while no controller runs. The program doesn't
//! read it.

use bytemuck::{Pod, Zeroable};

use super::{Fate, Forwarding, Text, word::word};

/// Largest weight.
const LARGEST_WEIGHT: u32 = 256;

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
    /// By what new flows are shared out.
    Balance {
        /// By the connection's addresses and ports.
        Maglev = 0 "maglev",
        /// By the client's address alone.
        Source = 1 "source",
        /// In turn.
        RoundRobin = 2 "roundrobin",
        /// To the backend with the fewest connections.
        LeastConn = 3 "leastconn",
    }
}

impl Balance {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Maglev, Self::Source, Self::RoundRobin, Self::LeastConn];
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
        /// By an HTTP request under TLS.
        Https = 3 "https",
        /// By what another backend's check says.
        Track = 4 "track",
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
        /// It goes on with the flows it has, and takes no new ones.
        Drain = 3 "drain",
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
    /// By what new flows are shared out.
    pub balance: Balance,
    /// Zero.
    pub padding: [u8; 3],
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
    pub detail: Text<160>,
    /// Why its agent says what it says, in the agent's words.
    pub agent_reason: Text<48>,
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
    /// Whether its agent says that it is up, or down; unknown: it says nothing, or there is none.
    pub agent: CheckResult,
    /// What an administrator wants of it, as its agent says.
    pub agent_wish: OperatorState,
    /// 1: it gets flows only while no other one takes any.
    pub is_backup: u8,
    /// Zero.
    pub padding: u8,
    /// Weight in percent of the configured one, as its agent says, plus one; 0: it says nothing.
    pub agent_percent: u32,
    /// Zero.
    pub reserved: [u32; 2],
}

impl BackendInfo {
    /// Weight in force: the operator's, else the configuration's as its agent has changed it.
    pub const fn weight(&self) -> u32 {
        if let Some(weight) = self.operator_weight.checked_sub(1) {
            return weight;
        }
        match self.agent_percent.checked_sub(1) {
            // A little of something is something, and no weight is above HAProxy's largest.
            Some(percent) => {
                let weight = (self.configured_weight * percent).div_ceil(100);
                if weight < LARGEST_WEIGHT { weight } else { LARGEST_WEIGHT }
            }
            None => self.configured_weight,
        }
    }

    /// Whether new flows may go to it.
    pub fn takes_new_flows(&self) -> bool {
        self.is_wanted() && self.result == CheckResult::Up && self.agent != CheckResult::Down
    }

    /// Whether new flows may go to it as far as people and the configuration are concerned, whatever checks say.
    pub fn is_wanted(&self) -> bool {
        self.lifecycle == Lifecycle::Active
            && self.operator == OperatorState::Ready
            && self.agent_wish == OperatorState::Ready
            && self.weight() > 0
    }

    /// Whether it is down.
    pub fn is_down(&self) -> bool {
        self.result == CheckResult::Down || self.agent == CheckResult::Down
    }

    /// The word for its state: what people said before what the checks say.
    pub fn state(&self) -> &'static str {
        if self.lifecycle == Lifecycle::Retired {
            return "drain";
        }
        for said in [self.operator, self.agent_wish] {
            if said != OperatorState::Ready {
                return said.name();
            }
        }
        if self.agent == CheckResult::Down {
            return "down";
        }
        if self.result == CheckResult::Up && self.weight() == 0 {
            return "drain";
        }
        self.result.name()
    }

    /// Whether it is its agent alone that keeps new flows from it.
    pub fn is_held_by_agent(&self) -> bool {
        let says_so = self.agent_wish != OperatorState::Ready || self.agent == CheckResult::Down;
        self.operator == OperatorState::Ready && says_so && self.check != CheckKind::Track
    }
}
