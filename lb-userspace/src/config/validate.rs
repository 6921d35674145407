//! From what a file says to a configuration that holds together, or to everything that is wrong.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    ops::Range,
    path::PathBuf,
    time::Duration,
};

use toml::Spanned;

use super::{
    Config, DEFAULT_PIN_PATH, DEFAULT_SOCKET, Problem, Service, Timeouts, file,
    values::{self, Wrong},
};

/// Most addresses that full NAT sends from.
const MOST_NAT_ADDRESSES: usize = 16;

/// Longest name of a service or backend, in bytes: what fits into a map.
const LONGEST_NAME: usize = 63;

pub(super) fn validate(file: &file::File, text: &str) -> Result<Config, Vec<Problem>> {
    let mut validator = Validator::default();
    let config = validator.config(file, text);
    if validator.problems.is_empty() { Ok(config) } else { Err(validator.problems) }
}

#[derive(Default)]
pub(super) struct Validator {
    problems: Vec<Problem>,
}

impl Validator {
    fn config(&mut self, file: &file::File, text: &str) -> Config {
        let user = file.user.as_ref().and_then(|user| self.value(user, values::user));
        if file.service.is_empty() {
            self.problem(0..0, "no service", "add a [[service]] with name, bind and backends");
        }
        let timeouts = self.timeouts(&file.timeouts, DEFAULT_TIMEOUTS);
        let mut services: Vec<Service> =
            file.service.iter().map(|service| self.service(service.get_ref(), timeouts)).collect();
        self.unique(&file.service, |service| &service.name, "service");
        self.unique_binds(file, &services);
        self.no_loops(file, &services);
        self.resolve_tracks(file, &mut services);

        Config {
            interfaces: self.interfaces(&file.interfaces),
            xdp_mode: file.xdp_mode,
            admin: self.admin(file.admin.as_ref()),
            socket: self.path(file.socket.as_ref(), DEFAULT_SOCKET),
            pin_path: self.path(file.pin_path.as_ref(), DEFAULT_PIN_PATH),
            user,
            log: file
                .log
                .as_ref()
                .and_then(|log| self.value(log, values::log_filter))
                .unwrap_or_else(|| "info".to_owned()),
            log_format: file.log_format,
            hash_seed: self.number(file.hash_seed.as_ref(), 0, 0..=u32::MAX.into(), "hash_seed"),
            flows: self.number(
                file.limits.flows.as_ref(),
                1_048_576,
                1024..=67_108_864,
                "limits.flows",
            ),
            embryonic: self.number(
                file.limits.embryonic.as_ref(),
                131_072,
                1024..=16_777_216,
                "limits.embryonic",
            ),
            clients: self.number(
                file.limits.clients.as_ref(),
                262_144,
                1024..=16_777_216,
                "limits.clients",
            ),
            syn_rate_per_source: file.limits.syn_rate_per_source.as_ref().map(|rate| {
                self.number(Some(rate), 1, 1..=1_000_000, "limits.syn_rate_per_source")
            }),
            name_servers: {
                let servers = file.dns.servers.iter();
                servers.filter_map(|server| self.value(server, values::name_server)).collect()
            },
            nat_addresses: self.nat_addresses(&file.nat.addresses),
            nat_ports: file.nat.ports.as_ref().map_or((1024, 32_767), |ports| {
                self.value(ports, values::port_range).unwrap_or((1024, 32_767))
            }),
            services,
            watch: file.watch.unwrap_or(false),
            text: text.into(),
        }
    }

    pub(super) fn timeouts(&mut self, file: &file::Timeouts, default: Timeouts) -> Timeouts {
        Timeouts {
            syn: self.duration(file.syn.as_ref(), default.syn),
            established: self.duration(file.established.as_ref(), default.established),
            closing: self.duration(file.closing.as_ref(), default.closing),
            udp: self.duration(file.udp.as_ref(), default.udp),
        }
    }

    fn interfaces(&mut self, interfaces: &[Spanned<String>]) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for interface in interfaces {
            let name = interface.get_ref();
            // IFNAMSIZ of the kernel is 16, with the byte that ends the name.
            if name.is_empty() || name.len() > 15 || name.contains(['/', ' ']) {
                self.problem(
                    interface.span(),
                    format!("\"{name}\" is no interface name"),
                    "write a name that `ip link` shows, as in \"eth0\"",
                );
            } else if names.contains(name) {
                self.problem(
                    interface.span(),
                    format!("interface \"{name}\" is given twice"),
                    "remove one of them",
                );
            }
            names.push(name.clone());
        }
        names
    }

    fn admin(&mut self, admin: Option<&Spanned<String>>) -> Option<SocketAddr> {
        let Some(admin) = admin else {
            return Some(SocketAddr::from(([127, 0, 0, 1], 8404)));
        };
        if admin.get_ref().is_empty() {
            return None;
        }
        self.value(admin, |text| {
            text.parse().map_err(|_| {
                (
                    format!("\"{text}\" is no address and port"),
                    "write an address and a port, as in \"127.0.0.1:8404\", or \"\" for none",
                )
            })
        })
    }

    fn path(&mut self, written: Option<&Spanned<String>>, default: &str) -> PathBuf {
        let path = written.and_then(|written| self.value(written, values::absolute_path));
        path.unwrap_or_else(|| PathBuf::from(default))
    }

    fn nat_addresses(&mut self, addresses: &[Spanned<String>]) -> Vec<IpAddr> {
        if let Some(first) = addresses.get(MOST_NAT_ADDRESSES) {
            self.problem(
                first.span(),
                format!("{} addresses; {MOST_NAT_ADDRESSES} at most", addresses.len()),
                "remove some: each has up to 64,512 ports for each backend",
            );
        }
        let mut parsed = Vec::new();
        for address in addresses {
            let Some(ip) = self.value(address, values::address) else { continue };
            if parsed.contains(&ip) {
                self.problem(address.span(), format!("{ip} is given twice"), "remove one of them");
            }
            parsed.push(ip);
        }
        parsed
    }

    pub(super) fn name(&mut self, name: &Spanned<String>) {
        let text = name.get_ref();
        let allowed = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        if text.is_empty() || text.len() > LONGEST_NAME || !text.chars().all(allowed) {
            self.problem(
                name.span(),
                format!("\"{text}\" is no name"),
                "write 1 to 63 letters, digits, dots, dashes or underscores",
            );
        }
    }

    pub(super) fn unique<T>(
        &mut self,
        items: &[Spanned<T>],
        name: impl Fn(&T) -> &Spanned<String>,
        what: &str,
    ) {
        let mut seen = HashMap::new();
        for name in items.iter().map(|item| name(item.get_ref())) {
            if seen.insert(name.get_ref(), ()).is_some() {
                self.problem(
                    name.span(),
                    format!("{what} \"{}\" is given twice", name.get_ref()),
                    format!("give each {what} a name of its own"),
                );
            }
        }
    }

    fn unique_binds(&mut self, file: &file::File, services: &[Service]) {
        let mut seen = HashMap::new();
        for (written, service) in file.service.iter().map(Spanned::get_ref).zip(services) {
            for bind in written.bind.get_ref() {
                let Ok(parsed) = values::bind(bind.get_ref()) else { continue };
                let protocol = service.protocol.name();
                if let Some(first) = seen.insert((parsed, protocol), &service.name) {
                    self.problem(
                        bind.span(),
                        format!("{parsed}/{protocol} is already bound by service \"{first}\""),
                        "give it another address or port, or add the backends to that service",
                    );
                }
            }
        }
    }

    /// What is sent to a backend leaves this host, and doesn't come back to it.
    fn no_loops(&mut self, file: &file::File, services: &[Service]) {
        let mut bound = HashMap::new();
        for service in services {
            for bind in &service.binds {
                if let super::Bind::Address(address) = bind {
                    bound.insert(address.ip(), &service.name);
                }
            }
        }
        let written = file.service.iter().flat_map(|service| &service.get_ref().backend);
        for (written, backend) in written.zip(services.iter().flat_map(|service| &service.backends))
        {
            let ip = backend.address.ip();
            if let Some(service) = bound.get(&ip) {
                self.problem(
                    written.get_ref().address.span(),
                    format!("{ip} is an address of service \"{service}\", and no server's"),
                    "write the server's own address",
                );
            }
        }
    }

    /// One of the words; the first where none is written.
    pub(super) fn choice(
        &mut self,
        written: Option<&Spanned<String>>,
        key: &str,
        words: &[&'static str],
    ) -> &'static str {
        let Some(written) = written else { return words[0] };
        let word = written.get_ref();
        if let Some(word) = words.iter().find(|known| **known == *word) {
            return word;
        }
        let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
        let hint = format!("write {}", quoted.join(", "));
        self.problem(written.span(), format!("\"{word}\" is no {key}"), hint);
        words[0]
    }

    pub(super) fn number(
        &mut self,
        written: Option<&Spanned<i64>>,
        default: u32,
        range: std::ops::RangeInclusive<i64>,
        key: &str,
    ) -> u32 {
        let Some(written) = written else { return default };
        let number = *written.get_ref();
        if range.contains(&number) {
            return u32::try_from(number).unwrap_or(default);
        }
        let (low, high) = (range.start(), range.end());
        self.problem(
            written.span(),
            format!("{key} {number} is out of range: {low} to {high}"),
            format!("write a number from {low} to {high}"),
        );
        default
    }

    pub(super) fn duration(
        &mut self,
        written: Option<&Spanned<String>>,
        default: Duration,
    ) -> Duration {
        self.optional_duration(written).unwrap_or(default)
    }

    pub(super) fn optional_duration(
        &mut self,
        written: Option<&Spanned<String>>,
    ) -> Option<Duration> {
        let written = written?;
        let duration = self.value(written, values::duration)?;
        if (SHORTEST_DURATION..=LONGEST_DURATION).contains(&duration) {
            return Some(duration);
        }
        self.problem(
            written.span(),
            format!("\"{}\" is out of range: 10ms to 30days", written.get_ref()),
            "write it as \"500ms\", \"2s\" or \"30m\"",
        );
        None
    }

    pub(super) fn value<T>(
        &mut self,
        written: &Spanned<String>,
        parse: impl FnOnce(&str) -> Result<T, Wrong>,
    ) -> Option<T> {
        match parse(written.get_ref()) {
            Ok(value) => Some(value),
            Err((message, hint)) => {
                self.problem(written.span(), message, hint);
                None
            }
        }
    }

    pub(super) fn problem(
        &mut self,
        span: Range<usize>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.problems.push(Problem::new(span, message, hint));
    }
}

const DEFAULT_TIMEOUTS: Timeouts = Timeouts {
    syn: Duration::from_secs(10),
    established: Duration::from_secs(3600),
    closing: Duration::from_secs(30),
    udp: Duration::from_secs(60),
};
const SHORTEST_DURATION: Duration = Duration::from_millis(10);
const LONGEST_DURATION: Duration = Duration::from_secs(30 * 24 * 3600);
