//! Values that stand in the configuration as text.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
    ops::RangeInclusive,
    time::Duration,
};

/// Why a text isn't a value: what is wrong, and what to write instead.
pub(super) type Wrong = (String, &'static str);

/// A duration such as `500ms`, `2s` or `30m`.
pub(super) fn duration(text: &str) -> Result<Duration, Wrong> {
    humantime::parse_duration(text).map_err(|error| {
        (format!("\"{text}\" is no duration: {error}"), "write it as \"500ms\", \"2s\" or \"30m\"")
    })
}

/// An IPv4 address and port such as `192.0.2.1:8080`.
pub(super) fn address_and_port(text: &str) -> Result<SocketAddrV4, Wrong> {
    const HINT: &str = "write an IPv4 address and a port, as in \"192.0.2.1:8080\"";
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err((format!("\"{text}\" has no port"), HINT));
    };
    let port = port_number(port).map_err(|wrong| (wrong, HINT))?;
    if host == "*" {
        return Err((
            format!("\"{text}\": every address of the interfaces isn't available in this version"),
            "name each address, as in bind = [\"192.0.2.1:8080\", \"192.0.2.2:8080\"]",
        ));
    }
    if host.starts_with('[') {
        return Err((format!("\"{text}\": IPv6 isn't available in this version"), HINT));
    }
    let address: Ipv4Addr = host.parse().map_err(|_| {
        let name = host.chars().any(|letter| letter.is_ascii_alphabetic());
        let why = if name { "names aren't resolved in this version" } else { "no IPv4 address" };
        (format!("\"{host}\": {why}"), HINT)
    })?;
    let unusable = address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_broadcast();
    if unusable {
        return Err((
            format!("\"{host}\" can't be reached over a network interface"),
            "write the address that the machine has on its network",
        ));
    }
    Ok(SocketAddrV4::new(address, port))
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
