//! What differs between two configurations.

use std::{collections::HashMap, fmt, path::PathBuf, time::Duration};

use hyper::header::{HeaderName, HeaderValue};
use lb_common::abi::Access;
use serde::Serialize;

use super::{Backend, Check, CheckKind, Config, Service};

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// How.
    pub change: Change,
    /// The service, or `SERVICE/BACKEND`; `None`: what holds for all.
    pub name: Option<String>,
    /// The key whose value differs; `None` of what was added or removed as a whole.
    pub key: Option<&'static str>,
    /// Its value before.
    pub from: Option<String>,
    /// Its value now.
    pub to: Option<String>,
    /// Whether it takes a restart of the controller.
    pub restart: bool,
}

impl Difference {
    /// Whether it is about how large maps are, which they stay.
    pub fn is_of_a_size(&self) -> bool {
        self.key.is_some_and(|key| SIZES.contains(&key))
    }
}

/// How something differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It wasn't there.
    Added,
    /// It isn't there any longer.
    Removed,
    /// It has another value.
    Changed,
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.change {
            Change::Added => '+',
            Change::Removed => '-',
            Change::Changed => '~',
        };
        write!(formatter, "{sign}")?;
        if let Some(name) = &self.name {
            let what = if name.contains('/') { "backend" } else { "service" };
            write!(formatter, " {what} {name}")?;
        }
        if let Some(key) = self.key {
            write!(formatter, " {key}")?;
        }
        match (&self.from, &self.to) {
            (Some(from), Some(to)) => write!(formatter, ": {from} -> {to}")?,
            (Some(value), None) | (None, Some(value)) => write!(formatter, ": {value}")?,
            (None, None) => {}
        }
        match self.key {
            _ if self.is_of_a_size() => formatter.write_str(
                " (takes `lb detach`, which ends all connections, and a start of `lb run`; until then it stays as it is)",
            ),
            _ if self.restart => formatter.write_str(" (takes a restart of `lb run`)"),
            _ => Ok(()),
        }
    }
}

/// Keys that set the size of maps, which stay as they were made.
const SIZES: [&str; 3] = ["limits.flows", "limits.embryonic", "limits.clients"];

/// Everything that differs, in the order of the new configuration; what was removed comes last.
pub fn diff(old: &Config, new: &Config) -> Vec<Difference> {
    let mut differences = Vec::new();
    compare(&mut differences, None, &settings(old), &settings(new));
    let before: HashMap<&str, &Service> =
        old.services.iter().map(|service| (service.name.as_str(), service)).collect();
    let after: HashMap<&str, ()> =
        new.services.iter().map(|service| (service.name.as_str(), ())).collect();
    for service in &new.services {
        match before.get(service.name.as_str()) {
            Some(known) if *known == service => {}
            Some(known) => compare_services(&mut differences, known, service),
            None => {
                let count = format!("{} backends", service.backends.len());
                differences.push(whole(Change::Added, service.name.clone(), count));
            }
        }
    }
    for service in old.services.iter().filter(|known| !after.contains_key(known.name.as_str())) {
        let count = format!("{} backends", service.backends.len());
        differences.push(whole(Change::Removed, service.name.clone(), count));
    }
    differences
}

fn compare_services(differences: &mut Vec<Difference>, old: &Service, new: &Service) {
    let mut keys = service_keys(old);
    keys.extend(check_keys(&old.check));
    let mut new_keys = service_keys(new);
    new_keys.extend(check_keys(&new.check));
    compare(differences, Some(&new.name), &keys, &new_keys);

    let (before, after) = (by_name(&old.backends), by_name(&new.backends));
    // Another address makes another backend of it.
    let same = |other: Option<&&'_ Backend>, backend: &Backend| {
        other.is_some_and(|other| other.is_at(backend))
    };
    let name = |backend: &Backend| format!("{}/{}", new.name, backend.name);
    for backend in &new.backends {
        match before.get(backend.name.as_str()) {
            Some(known) if known.is_at(backend) => compare(
                differences,
                Some(&name(backend)),
                &backend_keys(known),
                &backend_keys(backend),
            ),
            _ => differences.push(whole(Change::Added, name(backend), backend.place())),
        }
    }
    for backend in &old.backends {
        if !same(after.get(backend.name.as_str()), backend) {
            differences.push(whole(Change::Removed, name(backend), backend.place()));
        }
    }
}

fn by_name(backends: &[Backend]) -> HashMap<&str, &Backend> {
    backends.iter().map(|backend| (backend.name.as_str(), backend)).collect()
}

fn whole(change: Change, name: String, what: String) -> Difference {
    let (from, to) =
        if change == Change::Removed { (Some(what), None) } else { (None, Some(what)) };
    Difference { change, name: Some(name), key: None, from, to, restart: false }
}

/// A key, its value, and whether a running controller can't change it.
type Key = (&'static str, String, bool);

fn compare(differences: &mut Vec<Difference>, name: Option<&str>, old: &[Key], new: &[Key]) {
    for ((key, from, _), (_, to, restart)) in old.iter().zip(new) {
        if from != to {
            differences.push(Difference {
                change: Change::Changed,
                name: name.map(str::to_owned),
                key: Some(*key),
                from: Some(from.clone()),
                to: Some(to.clone()),
                restart: *restart,
            });
        }
    }
}

/// Every key but those of services. The same ones of every configuration, in the same order.
fn settings(config: &Config) -> Vec<Key> {
    let fixed = |key, value: String| (key, value, true);
    let free = |key, value: String| (key, value, false);
    let (first, last) = config.nat_ports;
    vec![
        free("interfaces", list(&config.interfaces)),
        fixed("xdp_mode", format!("{:?}", config.xdp_mode).to_lowercase()),
        fixed("admin", optional(config.admin.as_ref())),
        fixed("socket", config.socket.display().to_string()),
        fixed("pin_path", config.pin_path.display().to_string()),
        fixed("user", optional(config.user.as_ref())),
        fixed("log", config.log.clone()),
        fixed("log_format", format!("{:?}", config.log_format).to_lowercase()),
        free("hash_seed", config.hash_seed.to_string()),
        fixed("limits.flows", config.flows.to_string()),
        fixed("limits.embryonic", config.embryonic.to_string()),
        fixed("limits.clients", config.clients.to_string()),
        free("limits.syn_rate_per_source", optional(config.syn_rate_per_source.as_ref())),
        free("dns.servers", list(&config.name_servers)),
        free("nat.addresses", list(&config.nat_addresses)),
        free("nat.ports", format!("{first}-{last}")),
        free("watch", config.watch.to_string()),
    ]
}

fn service_keys(service: &Service) -> Vec<Key> {
    let networks = |wanted: Access| {
        let listed = service.access.iter().filter(|(_, access)| **access == wanted);
        list(&listed.map(|(network, _)| network).collect::<Vec<_>>())
    };
    let timeouts = &service.timeouts;
    let keys = [
        ("bind", list(&service.binds)),
        ("protocol", service.protocol.name().to_owned()),
        ("forwarding", service.forwarding.name().to_owned()),
        ("balance", service.balance.name().to_owned()),
        (
            "max_load",
            service.most_load.map_or_else(none, |most| format!("{}", f64::from(most) / 100.0)),
        ),
        ("slow_start", time(service.slow_start)),
        ("mss", optional(service.maximum_segment.as_ref())),
        ("on_down", service.on_down.name().to_owned()),
        ("on_all_down", service.on_all_down.name().to_owned()),
        ("affinity", service.affinity.map_or_else(none, time)),
        ("allow", networks(Access::Allowed)),
        ("deny", networks(Access::Denied)),
        ("timeouts.syn", time(timeouts.syn)),
        ("timeouts.established", time(timeouts.established)),
        ("timeouts.closing", time(timeouts.closing)),
        ("timeouts.udp", time(timeouts.udp)),
    ];
    keys.map(|(key, value)| (key, value, false)).to_vec()
}

fn check_keys(check: &Check) -> Vec<Key> {
    let (kind, http, tcp) = match &check.kind {
        CheckKind::None => ("none", None, None),
        CheckKind::Tcp(tcp) => ("tcp", None, Some(tcp)),
        CheckKind::Http(http) if check.tls.is_some() => ("https", Some(http), None),
        CheckKind::Http(http) => ("http", Some(http), None),
    };
    let pattern = http.map_or_else(
        || optional(tcp.and_then(|tcp| tcp.expect.as_ref())),
        |http| http.expect.to_string(),
    );
    let header = |(name, value): &(HeaderName, HeaderValue)| format!("{name}: {value:?}");
    let headers: Vec<String> = http.iter().flat_map(|http| &http.headers).map(header).collect();
    let expect_header = http.and_then(|http| http.expect_header.as_ref());
    let path = |path: &PathBuf| path.display().to_string();
    let tls = check.tls.as_ref();
    let agent = check.agent.as_ref();
    let keys = [
        ("check.type", kind.to_owned()),
        ("check.method", optional(http.map(|http| &http.method))),
        ("check.path", optional(http.map(|http| &http.path))),
        ("check.http_version", optional(http.map(|http| http.version).as_ref())),
        ("check.host", optional(http.and_then(|http| http.host.as_ref()))),
        ("check.headers", list(&headers)),
        ("check.body", optional(http.and_then(|http| http.body.as_ref()))),
        ("check.send", optional(tcp.and_then(|tcp| tcp.send.as_ref()))),
        ("check.expect", pattern),
        (
            "check.expect_header",
            expect_header.map_or_else(none, |(name, pattern)| format!("{name}: {pattern}")),
        ),
        ("check.expect_body", optional(http.and_then(|http| http.expect_body.as_ref()))),
        ("check.drain_on", optional(http.and_then(|http| http.drain_on.as_ref()))),
        ("check.verify", optional(tls.map(|tls| tls.verify).as_ref())),
        ("check.ca_file", tls.and_then(|tls| tls.ca_file.as_ref()).map_or_else(none, path)),
        ("check.certificate", tls.and_then(|tls| tls.certificate.as_ref()).map_or_else(none, path)),
        ("check.interval", time(check.interval)),
        ("check.fast_interval", check.fast_interval.map_or_else(none, time)),
        ("check.down_interval", check.down_interval.map_or_else(none, time)),
        ("check.timeout", time(check.timeout)),
        ("check.rise", check.rise.to_string()),
        ("check.fall", check.fall.to_string()),
        ("check.port", optional(check.port.as_ref())),
        ("check.observe", if check.observe.is_some() { "connect".to_owned() } else { none() }),
        (
            "check.observe_failures",
            optional(check.observe.map(|observe| observe.failures).as_ref()),
        ),
        ("check.observe_window", check.observe.map_or_else(none, |observe| time(observe.window))),
        ("check.agent_port", optional(agent.map(|agent| agent.port).as_ref())),
        ("check.agent_interval", agent.map_or_else(none, |agent| time(agent.interval))),
        ("check.agent_send", optional(agent.and_then(|agent| agent.send.as_ref()))),
    ];
    keys.map(|(key, value)| (key, value, false)).to_vec()
}

fn backend_keys(backend: &Backend) -> Vec<Key> {
    let keys = [
        ("weight", backend.weight.to_string()),
        ("backup", backend.backup.to_string()),
        ("check_address", optional(backend.check_address.as_ref())),
        ("check_port", optional(backend.check_port.as_ref())),
        ("track", optional(backend.track.as_ref())),
    ];
    keys.map(|(key, value)| (key, value, false)).to_vec()
}

fn none() -> String {
    "none".to_owned()
}

fn optional(value: Option<&impl ToString>) -> String {
    value.map_or_else(none, ToString::to_string)
}

fn time(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    format!("[{}]", items.join(", "))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const TEXT: &str = r#"
[[service]]
name = "ui"
bind = ["192.0.2.1:80"]
[[service.backend]]
name = "a"
address = "192.0.2.11:80"
[[service.backend]]
name = "b"
address = "192.0.2.12:80"

[[service]]
name = "agents"
bind = ["192.0.2.1:8250"]
[[service.backend]]
name = "a"
address = "192.0.2.11:8250"
"#;

    fn config(text: &str) -> Config {
        Config::parse(Path::new("lb.toml"), text).expect("a configuration")
    }

    #[test]
    fn what_differs_is_said_and_nothing_else() {
        let old = config(TEXT);
        assert_eq!(diff(&old, &old), []);
        let new = TEXT
            .replace("192.0.2.12:80", "192.0.2.13:80")
            .replace("name = \"agents\"", "name = \"agents\"\nforwarding = \"nat\"")
            .replace("\"192.0.2.11:8250\"", "\"192.0.2.11:8250\"\nweight = 3");
        let new = format!(
            "admin = \"\"\n{new}\n[service.check]\ninterval = \"3s\"\n\n[[service]]\nname = \"new\"\n\
             bind = [\"192.0.2.1:81\"]\n[[service.backend]]\nname = \"a\"\naddress = \"192.0.2.11:81\"\n"
        );
        let said: Vec<String> = diff(&old, &config(&new)).iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "~ admin: 127.0.0.1:8404 -> none (takes a restart of `lb run`)",
                "+ backend ui/b: 192.0.2.13:80",
                "- backend ui/b: 192.0.2.12:80",
                "~ service agents forwarding: full-nat -> nat",
                "~ service agents check.interval: 2s -> 3s",
                "~ backend agents/a weight: 1 -> 3",
                "+ service new: 1 backends",
            ]
        );
        let gone = diff(&config(&new), &old).pop().map(|last| last.to_string());
        assert_eq!(gone.as_deref(), Some("- service new: 1 backends"));
    }
}
