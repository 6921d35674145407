//! The configuration: read strictly, validated whole, and only then used.

mod check;
mod check_keys;
mod diff;
mod file;
mod problem;
mod service;
mod tls;
mod track;
mod validate;
mod values;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    fs::File,
    io::{self, Read as _},
    net::{IpAddr, SocketAddr},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use check::{Agent, Check, CheckKind, HttpCheck, HttpVersion, Observe, TcpCheck};
pub use diff::{Change, Difference, diff};
pub use problem::{Invalid, Problem};
pub use tls::Tls;
pub use values::{Pattern, StatusRanges, is_reachable};

use ipnet::IpNet;
use lb_common::abi::{Access, Balance, Fate, Forwarding, Protocol};

use crate::dataplane::ModeChoice;

/// Where the configuration is looked for if no file is named.
pub const DEFAULT_FILE: &str = "/etc/lb/lb.toml";
/// Where the control socket is if the configuration doesn't say.
pub const DEFAULT_SOCKET: &str = "/run/lb/lb.sock";
/// Where maps and links are pinned if the configuration doesn't say.
pub const DEFAULT_PIN_PATH: &str = "/sys/fs/bpf/lb";

/// A configuration that holds together.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Interfaces that the program is attached to; empty: that of the default route.
    pub interfaces: Vec<String>,
    /// How.
    pub xdp_mode: ModeChoice,
    /// Where the admin pages are served; `None`: nowhere.
    pub admin: Option<SocketAddr>,
    /// The control socket.
    pub socket: PathBuf,
    /// The directory of pins.
    pub pin_path: PathBuf,
    /// The user that the controller runs as once it has started; `None`: as whom it was started.
    pub user: Option<String>,
    /// Which messages are logged, as a filter of tracing-subscriber.
    pub log: String,
    /// How.
    pub log_format: LogFormat,
    /// Seed of the hash that picks ring slots.
    pub hash_seed: u32,
    /// Established connections that there is room for.
    pub flows: u32,
    /// Half-open handshakes that there is room for.
    pub embryonic: u32,
    /// Clients that there is room for in the table of those that keep their backend, of each family.
    pub clients: u32,
    /// SYNs a second that one source may send, in the long run; `None`: any number.
    pub syn_rate_per_source: Option<u32>,
    /// Addresses that full NAT sends from; empty: the primary one of the interface.
    pub nat_addresses: Vec<IpAddr>,
    /// First and last port that full NAT sends from.
    pub nat_ports: (u16, u16),
    /// Servers that are asked for the addresses of backends by name; empty: those of the system.
    pub name_servers: Vec<SocketAddr>,
    /// Services.
    pub services: Vec<Service>,
    /// Whether a change of the file is applied as soon as it is there.
    pub watch: bool,
    /// The text that all of it comes from.
    pub text: Arc<str>,
}

/// How messages are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// An object a line.
    Json,
}

/// Something that clients reach, and the servers behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// What clients reach.
    pub binds: Vec<Bind>,
    /// What its packets are.
    pub protocol: Protocol,
    /// How packets reach the backends.
    pub forwarding: Forwarding,
    /// Longest segment that TCP may send, in bytes, as SYNs are made to say; `None`: as they say.
    pub maximum_segment: Option<u16>,
    /// Idle timeouts.
    pub timeouts: Timeouts,
    /// By what new flows are shared out.
    pub balance: Balance,
    /// What becomes of the flows of a backend that is down.
    pub on_down: Fate,
    /// What becomes of new flows while no backend takes any.
    pub on_all_down: AllDown,
    /// How long a backend that came up again takes until it has its whole share; zero: it has it at once.
    pub slow_start: Duration,
    /// How many connections a backend may have before new ones go elsewhere, in percent of its share of all; `None`: any
    /// number.
    pub most_load: Option<u32>,
    /// How long a client keeps its backend after its last connection; `None`: it doesn't.
    pub affinity: Option<Duration>,
    /// Which networks may connect, and which may not: the longest prefix decides. Empty: everyone may.
    pub access: BTreeMap<IpNet, Access>,
    /// How its backends are checked.
    pub check: Arc<Check>,
    /// Its servers.
    pub backends: Vec<Backend>,
}

/// What becomes of new flows while no backend takes any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllDown {
    /// The client is told at once.
    #[default]
    Refuse,
    /// It isn't told.
    Drop,
    /// All of them are used as if they were up: it may be the checks that are wrong.
    Keep,
}

impl AllDown {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Refuse, Self::Drop, Self::Keep];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Drop => "drop",
            Self::Keep => "keep",
        }
    }
}

/// What a service is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bind {
    /// An address and a port.
    Address(SocketAddr),
    /// A port on every address that the interfaces have at the moment.
    Any(u16),
}

impl Bind {
    /// The port.
    pub const fn port(self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Any(port) => port,
        }
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(formatter),
            Self::Any(port) => write!(formatter, "*:{port}"),
        }
    }
}

impl Service {
    /// Whether packets for an address can reach every backend. Only an outer header takes those of
    /// one family to a backend of the other.
    pub fn can_serve(&self, address: IpAddr) -> bool {
        let same_family = |backend: &Backend| backend.address.is_ipv4() == address.is_ipv4();
        self.forwarding.encapsulates() || self.backends.iter().all(same_family)
    }
}

/// After how long without a packet a flow is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// While half-open.
    pub syn: Duration,
    /// While established.
    pub established: Duration,
    /// Once one end has sent FIN, or RST.
    pub closing: Duration,
    /// Of UDP.
    pub udp: Duration,
}

/// One server.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Where it listens. One that is known by its name has an unspecified address of the service's family until that is
    /// looked up.
    pub address: SocketAddr,
    /// The name that its address is looked up by; `None`: the address is what is written.
    pub host: Option<String>,
    /// Its share of new flows, relative to the others'; 0 to 256, where 0 drains.
    pub weight: u16,
    /// Whether it gets flows only while no other one takes any.
    pub backup: bool,
    /// The address that is checked; `None`: its own.
    pub check_address: Option<IpAddr>,
    /// The port that is checked; `None`: as [`Check::port`].
    pub check_port: Option<u16>,
    /// The backend of another service whose check decides for this one as well.
    pub track: Option<Tracked>,
}

impl Backend {
    /// Where it is, as it is written: by its name, if it has one.
    pub fn place(&self) -> String {
        match &self.host {
            Some(host) => format!("{host}:{}", self.address.port()),
            None => self.address.to_string(),
        }
    }

    /// Whether another is at the same place, as both are written.
    pub fn is_at(&self, other: &Self) -> bool {
        match (&self.host, &other.host) {
            (None, None) => self.address == other.address,
            (one, other_host) => one == other_host && self.address.port() == other.address.port(),
        }
    }
}

/// A backend by the names of its service and its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tracked {
    /// Its service.
    pub service: String,
    /// Its name.
    pub backend: String,
}

impl fmt::Display for Tracked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.service, self.backend)
    }
}

/// The path that a file gives under a key, whatever else in it is wrong: who looks after a running controller may just
/// have made a mistake there.
///
/// # Errors
///
/// It can't be read, or isn't TOML.
pub fn path_in(file: &Path, key: &str) -> Result<Option<PathBuf>, Invalid> {
    let text = text_of(file).map_err(|error| Invalid::unreadable(file, &error))?;
    // Keys of no table stand before the first one: the rest may be long.
    let head = text.find("\n[").map_or(text.as_str(), |end| &text[..end]);
    let table: toml::Table = toml::from_str(head)
        .or_else(|_| toml::from_str(&text))
        .map_err(|error| Invalid::new(file, &text, vec![Problem::from_toml(&error)]))?;
    Ok(table.get(key).and_then(toml::Value::as_str).map(PathBuf::from))
}

/// The text of a configuration that is read again and again, and so is in a regular file: nothing else may keep the
/// controller waiting.
///
/// # Errors
///
/// It can't be read, or is something else.
pub fn text_of(file: &Path) -> io::Result<String> {
    let mut opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(file)?;
    if !opened.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut text = String::new();
    opened.read_to_string(&mut text)?;
    Ok(text)
}

/// So many things, in words.
pub fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

impl Config {
    /// Reads and validates a regular file.
    ///
    /// # Errors
    ///
    /// As of [`Self::read`], or it is something else.
    pub fn read_regular(file: &Path) -> Result<Self, Invalid> {
        let text = text_of(file).map_err(|error| Invalid::unreadable(file, &error))?;
        Self::parse(file, &text)
    }

    /// Reads and validates a file.
    ///
    /// # Errors
    ///
    /// It can't be read, or something in it is wrong: then everything that is.
    pub fn read(file: &Path) -> Result<Self, Invalid> {
        let text =
            std::fs::read_to_string(file).map_err(|error| Invalid::unreadable(file, &error))?;
        Self::parse(file, &text)
    }

    /// How many services and backends there are, in words.
    pub fn extent(&self) -> String {
        let backends = self.services.iter().map(|service| service.backends.len()).sum();
        format!("{}, {}", counted(self.services.len(), "service"), counted(backends, "backend"))
    }

    /// Backends that are known by their names, with their services'.
    pub fn named_backends(&mut self) -> impl Iterator<Item = (&str, &mut Backend)> {
        self.services.iter_mut().flat_map(|service| {
            let name = service.name.as_str();
            let named = service.backends.iter_mut().filter(|backend| backend.host.is_some());
            named.map(move |backend| (name, backend))
        })
    }

    /// The names of hosts that backends are at, by the names of services and backends.
    pub fn hosts(&self) -> HashMap<(&str, &str), &str> {
        let all = self.services.iter().flat_map(|service| {
            service.backends.iter().map(|backend| (service.name.as_str(), backend))
        });
        all.filter_map(|(service, backend)| {
            Some(((service, backend.name.as_str()), backend.host.as_deref()?))
        })
        .collect()
    }

    /// Validates the text of a file.
    ///
    /// # Errors
    ///
    /// Something in it is wrong: then everything that is.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Invalid> {
        let parsed: Result<file::File, toml::de::Error> = toml::from_str(text);
        let result = match parsed {
            Ok(parsed) => validate::validate(&parsed, text),
            Err(error) => Err(vec![Problem::from_toml(&error)]),
        };
        result.map_err(|problems| Invalid::new(file, text, problems))
    }
}
