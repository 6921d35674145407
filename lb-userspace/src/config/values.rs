//! Values that stand in the configuration as text.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use hyper::header::{HeaderName, HeaderValue};
use ipnet::IpNet;
use regex::bytes::{Regex, RegexBuilder};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::Bind;

/// Why a text isn't a value: what is wrong, and what to write instead.
pub(super) type Wrong = (String, &'static str);

/// A duration such as `500ms`, `2s` or `30m`.
pub(super) fn duration(text: &str) -> Result<Duration, Wrong> {
    humantime::parse_duration(text).map_err(|error| {
        (format!("\"{text}\" is no duration: {error}"), "write it as \"500ms\", \"2s\" or \"30m\"")
    })
}

const ADDRESS_HINT: &str =
    "write an address and a port, as in \"192.0.2.1:8080\" or \"[2001:db8::1]:8080\"";

/// What a service is bound to: an address and port, or `*` and a port.
pub(super) fn bind(text: &str) -> Result<Bind, Wrong> {
    match text.strip_prefix("*:") {
        Some(port) => port_number(port).map(Bind::Any).map_err(|wrong| (wrong, ADDRESS_HINT)),
        None => address_and_port(text).map(Bind::Address),
    }
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// At an address.
    Address(SocketAddr),
    /// At whatever address a name has, and a port.
    Name(String, u16),
}

impl Place {
    /// The port.
    pub(super) const fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Name(_, port) => *port,
        }
    }
}

/// A server's address and port, or its name and port, such as `app1.example.com:8080`.
pub(super) fn place(text: &str) -> Result<Place, Wrong> {
    const HINT: &str = "write an address or a name and a port, as in \"192.0.2.1:8080\" or \"app1.example.com:8080\"";
    match text.rsplit_once(':') {
        Some((host, port)) if looks_like_name(host) => {
            let port = port_number(port).map_err(|wrong| (wrong, HINT))?;
            // As in RFC 1123, section 2.1, and with underscores, as many have them.
            let is_label = |label: &str| {
                let is_allowed =
                    |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
                (1..=63).contains(&label.len())
                    && label.chars().all(is_allowed)
                    && !label.starts_with('-')
            };
            let name = host.strip_suffix('.').unwrap_or(host);
            if name.len() > 253 || !name.split('.').all(is_label) {
                return Err((format!("\"{host}\" is no name of a host"), HINT));
            }
            Ok(Place::Name(host.to_ascii_lowercase(), port))
        }
        _ => address_and_port(text).map(Place::Address),
    }
}

/// Whether somebody who writes this means a name, and no address.
fn looks_like_name(host: &str) -> bool {
    !host.contains(':') && host.chars().any(|letter| letter.is_ascii_alphabetic())
}

/// Where a server of names listens: an address, with a port other than 53 if need be.
pub(super) fn name_server(text: &str) -> Result<SocketAddr, Wrong> {
    const PORT: u16 = 53;
    let address =
        text.parse().map(|ip: IpAddr| SocketAddr::new(ip, PORT)).or_else(|_| text.parse());
    address.map_err(|_| {
        let wrong = format!("\"{text}\" is no address of a server of names");
        (wrong, "write one as in \"192.0.2.53\" or \"192.0.2.53:5353\"")
    })
}

/// An address and port such as `192.0.2.1:8080` or `[2001:db8::1]:8080`.
pub(super) fn address_and_port(text: &str) -> Result<SocketAddr, Wrong> {
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err((format!("\"{text}\" has no port"), ADDRESS_HINT));
    };
    let port = port_number(port).map_err(|wrong| (wrong, ADDRESS_HINT))?;
    let within = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let address = match within {
        Some(host) => host.parse().map(IpAddr::V6).map_err(|_| "no IPv6 address"),
        None => host.parse().map(IpAddr::V4).map_err(|_| {
            if host.contains(':') {
                "an IPv6 address is written in brackets"
            } else if looks_like_name(host) {
                "a service is bound to addresses, not to names"
            } else {
                "no IPv4 address"
            }
        }),
    };
    let address = address.map_err(|why| (format!("\"{host}\": {why}"), ADDRESS_HINT))?;
    if address.is_unspecified() {
        return Err((
            format!("\"{host}\" is no address of a machine"),
            "write \"*:8080\" to bind a service to every address of the interfaces",
        ));
    }
    if !is_reachable(address) {
        return Err((
            format!("\"{host}\" can't be reached over a network interface"),
            "write the address that the machine has on its network",
        ));
    }
    Ok(SocketAddr::new(address, port))
}

/// An address such as `192.0.2.1` or `2001:db8::1`.
pub(super) fn address(text: &str) -> Result<IpAddr, Wrong> {
    const HINT: &str = "write one as in \"192.0.2.10\" or \"2001:db8::10\"";
    let address: IpAddr =
        text.parse().map_err(|_| (format!("\"{text}\" is no IP address"), HINT))?;
    if is_reachable(address) {
        Ok(address)
    } else {
        Err((format!("\"{text}\" is no address of a machine on a network"), HINT))
    }
}

/// Whether an address is one that a machine may have on its network, and that says by itself where
/// it is: IPv6's link-local ones don't.
pub fn is_reachable(address: IpAddr) -> bool {
    let is_special = match address {
        IpAddr::V4(address) => address.is_broadcast(),
        IpAddr::V6(address) => {
            address.is_unicast_link_local() || address.to_ipv4_mapped().is_some()
        }
    };
    !(is_special || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

fn port_number(text: &str) -> Result<u16, String> {
    match text.parse::<u64>() {
        Ok(port @ 1..=65535) => Ok(port as u16),
        Ok(port) => Err(format!("port {port} is out of range: 1 to 65535")),
        Err(_) => Err(format!("\"{text}\" is no port: 1 to 65535")),
    }
}

/// A range of ports such as `1024-32767`.
pub(super) fn port_range(text: &str) -> Result<(u16, u16), Wrong> {
    const HINT: &str = "write it as \"1024-32767\"";
    let Some((first, last)) = text.split_once('-') else {
        return Err((format!("\"{text}\" is no range of ports"), HINT));
    };
    let first = port_number(first.trim()).map_err(|wrong| (wrong, HINT))?;
    let last = port_number(last.trim()).map_err(|wrong| (wrong, HINT))?;
    if first > last {
        return Err((format!("\"{text}\": the first port is above the last"), HINT));
    }
    Ok((first, last))
}

/// A network such as `192.0.2.0/24` or `2001:db8::/32`, or an address.
pub(super) fn network(text: &str) -> Result<IpNet, Wrong> {
    const HINT: &str = "write it as \"192.0.2.0/24\", \"2001:db8::/32\" or \"192.0.2.7\"";
    let parsed = match text.parse::<IpAddr>() {
        Ok(address) => Ok(IpNet::from(address)),
        Err(_) => text.parse::<IpNet>(),
    };
    let network = parsed.map_err(|_| (format!("\"{text}\" is no network"), HINT))?;
    if network.trunc() == network {
        Ok(network)
    } else {
        Err((
            format!(
                "\"{text}\" has bits set behind its prefix: the network is {}",
                network.trunc()
            ),
            HINT,
        ))
    }
}

/// A path from the root: commands are run in other directories than the controller.
pub(super) fn absolute_path(text: &str) -> Result<PathBuf, Wrong> {
    let path = PathBuf::from(text);
    if path.is_absolute() && path.file_name().is_some() {
        return Ok(path);
    }
    Err((format!("\"{text}\" is no path from the root"), "write one that begins with /"))
}

/// The name of a user.
pub(super) fn user(text: &str) -> Result<String, Wrong> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number || text.contains([':', '/', ' ']) {
        return Err((
            format!("\"{text}\" is no user's name"),
            "write one, as in \"lb\", or leave it out",
        ));
    }
    Ok(text.to_owned())
}

/// What is logged: a level, or several with the part of the program that each is for.
pub(super) fn log_filter(text: &str) -> Result<String, Wrong> {
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok() && !word.trim().is_empty();
    let is_known = |part: &str| match part.split_once('=') {
        Some((target, level)) => !target.trim().is_empty() && is_level(level),
        None => is_level(part),
    };
    if text.split(',').all(is_known) && EnvFilter::try_new(text).is_ok() {
        return Ok(text.to_owned());
    }
    Err((
        format!("\"{text}\" is no level of a log"),
        "write \"error\", \"warn\", \"info\", \"debug\" or \"trace\", or \"off\"",
    ))
}

/// A regular expression, as the regex crate has them.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    pub(super) fn parse(text: &str) -> Result<Self, Wrong> {
        const HINT: &str = "write one as in \"OK|ready\"; see https://docs.rs/regex";
        let built = RegexBuilder::new(text).size_limit(LARGEST_PATTERN).build();
        built.map(Self).map_err(|error| {
            let why = error.to_string();
            let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ");
            (format!("\"{text}\" is no regular expression: {why}"), HINT)
        })
    }

    /// Whether it is found somewhere in there.
    pub fn is_in(&self, text: &[u8]) -> bool {
        self.0.is_match(text)
    }
}

/// Most memory that a compiled pattern may take, in bytes.
const LARGEST_PATTERN: usize = 1 << 20;

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0.as_str())
    }
}

/// The name of an HTTP header.
pub(super) fn header_name(text: &str) -> Result<HeaderName, Wrong> {
    text.parse().map_err(|_| {
        (format!("\"{text}\" is no name of a header"), "write it as in { Accept = \"text/html\" }")
    })
}

/// What a header says.
pub(super) fn header_value(text: &str) -> Result<HeaderValue, Wrong> {
    text.parse().map_err(|_| {
        (
            format!("{text:?} can't stand in a header"),
            "write visible characters, without line breaks",
        )
    })
}

/// A header and what it must hold, such as `Content-Type: text/.*`.
pub(super) fn header_pattern(text: &str) -> Result<(HeaderName, Pattern), Wrong> {
    const HINT: &str = "write a name and a regular expression, as in \"Content-Type: text/.*\"";
    let (name, pattern) =
        text.split_once(':').ok_or_else(|| (format!("\"{text}\" has no colon"), HINT))?;
    Ok((header_name(name.trim())?, Pattern::parse(pattern.trim())?))
}

/// HTTP status codes, such as `200-299,401`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusRanges(Vec<RangeInclusive<u16>>);

impl StatusRanges {
    pub(super) fn parse(text: &str) -> Result<Self, Wrong> {
        let wrong = || {
            (
                format!("\"{text}\" are no status codes"),
                "write codes from 100 to 599 and ranges of them, as in \"200-299,401\"",
            )
        };
        let status = |text: &str| match text.trim().parse() {
            Ok(code @ 100..=599) => Ok(code),
            _ => Err(wrong()),
        };
        let mut ranges = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = status(first)?..=status(last)?;
            if range.is_empty() {
                return Err(wrong());
            }
            ranges.push(range);
        }
        Ok(Self(ranges))
    }

    /// 200 to 399: what HAProxy takes for a success.
    pub(super) fn success_and_redirection() -> Self {
        Self(vec![200..=399])
    }

    /// Whether a status code is among them.
    pub fn contains(&self, code: u16) -> bool {
        self.0.iter().any(|range| range.contains(&code))
    }
}

impl fmt::Display for StatusRanges {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let (first, last) = (range.start(), range.end());
            if first == last {
                write!(formatter, "{comma}{first}")?;
            } else {
                write!(formatter, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}
