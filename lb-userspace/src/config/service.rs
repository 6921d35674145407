//! What a file says of services and their backends.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use lb_common::abi::{Access, Balance, Fate, Forwarding, Protocol};
use toml::Spanned;

use super::{
    AllDown, Backend, Bind, Check, CheckKind, Service, Timeouts, file,
    validate::Validator,
    values::{self, Place},
};

/// Largest weight, as in HAProxy.
const LARGEST_WEIGHT: i64 = 256;
/// Most backends of one service: a ring has 100 slots for each, and 2^20 - 1 in all.
const MOST_BACKENDS: usize = 10_000;

/// From what every host takes over IPv4 (RFC 9293, section 3.7.1) to what the longest datagram holds.
const MAXIMUM_SEGMENTS: RangeInclusive<i64> = 536..=65_495;

impl Validator {
    pub(super) fn service(&mut self, service: &file::Service, timeouts: Timeouts) -> Service {
        self.name(&service.name);
        let protocol = self.choice(service.protocol.as_ref(), "protocol", &["tcp", "udp"]);
        let protocol = if protocol == "udp" { Protocol::Udp } else { Protocol::Tcp };
        let forwarding = self.forwarding(service.forwarding.as_ref());
        let words = Balance::ALL.map(Balance::name);
        let balance = self.choice(service.balance.as_ref(), "balance", &words);
        let balance =
            Balance::ALL.into_iter().find(|one| one.name() == balance).unwrap_or_default();
        let fates = [Fate::Reset, Fate::Move, Fate::Keep];
        let on_down = self.choice(service.on_down.as_ref(), "on_down", &fates.map(Fate::name));
        let on_down = fates.into_iter().find(|fate| fate.name() == on_down).unwrap_or(Fate::Reset);
        let words = AllDown::ALL.map(AllDown::name);
        let on_all_down = self.choice(service.on_all_down.as_ref(), "on_all_down", &words);
        let on_all_down = AllDown::ALL.into_iter().find(|one| one.name() == on_all_down);
        if service.bind.get_ref().is_empty() {
            self.problem(service.bind.span(), "no address", "write bind = [\"192.0.2.1:8080\"]");
        }
        let binds = service.bind.get_ref();
        let binds: Vec<Bind> =
            binds.iter().filter_map(|bind| self.value(bind, values::bind)).collect();
        let parsed = Service {
            name: service.name.get_ref().clone(),
            protocol,
            forwarding,
            maximum_segment: self.maximum_segment(service, protocol),
            timeouts: service
                .timeouts
                .as_ref()
                .map_or(timeouts, |own| self.timeouts(own, timeouts)),
            balance,
            most_load: self.most_load(service.max_load.as_ref(), balance),
            on_down,
            on_all_down: on_all_down.unwrap_or_default(),
            slow_start: self.slow_start(service.slow_start.as_ref()),
            affinity: self.optional_duration(service.affinity.as_ref()),
            access: self.access(service),
            check: Arc::new(self.check_of(service, protocol)),
            backends: self.backends(service, binds.first()),
            binds,
        };
        self.refuse_observation(service, &parsed);
        self.refuse_translation(service, &parsed);
        self.refuse_two_families(service, &parsed);
        parsed
    }

    fn most_load(&mut self, written: Option<&Spanned<f64>>, balance: Balance) -> Option<u32> {
        let written = written?;
        let factor = *written.get_ref();
        if !(1.0..=100.0).contains(&factor) {
            self.problem(
                written.span(),
                format!("max_load {factor} is out of range: 1.0 to 100.0"),
                "write how much more than its share a backend may have, as in 1.25",
            );
            return None;
        }
        if ![Balance::Maglev, Balance::Source].contains(&balance) {
            self.problem(
                written.span(),
                format!("balance \"{}\" has no use for max_load", balance.name()),
                "leave it out, or write balance = \"maglev\" or \"source\"",
            );
        }
        Some((factor * 100.0).round() as u32)
    }

    /// Zero, or a duration like others.
    fn slow_start(&mut self, written: Option<&Spanned<String>>) -> Duration {
        let is_zero = |written: &&Spanned<String>| {
            values::duration(written.get_ref()).is_ok_and(|duration| duration.is_zero())
        };
        let written = written.filter(|written| !is_zero(written));
        self.duration(written, Duration::ZERO)
    }

    /// Who may connect.
    fn access(&mut self, service: &file::Service) -> BTreeMap<IpNet, Access> {
        let mut networks = BTreeMap::new();
        for (list, access) in [(&service.allow, Access::Allowed), (&service.deny, Access::Denied)] {
            for written in list {
                let Some(network) = self.value(written, values::network) else { continue };
                if networks.insert(network, access).is_some_and(|before| before != access) {
                    self.problem(
                        written.span(),
                        format!("{network} stands in both allow and deny"),
                        "remove it from one of them",
                    );
                }
            }
        }
        if networks.is_empty() {
            return networks;
        }
        // What neither says: whoever isn't allowed, where some are.
        let rest = if service.allow.is_empty() { Access::Allowed } else { Access::Denied };
        for any in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
            networks.entry(IpNet::new_assert(any, 0)).or_insert(rest);
        }
        networks
    }

    /// How the backends are checked. A check is by TCP, so that one of UDP is only made where it is
    /// asked for.
    fn check_of(&mut self, service: &file::Service, protocol: Protocol) -> Check {
        match &service.check {
            Some(check) => self.check(check),
            None if protocol == Protocol::Udp => {
                Check { kind: CheckKind::None, ..self.check(&file::Check::default()) }
            }
            None => self.check(&file::Check::default()),
        }
    }

    fn maximum_segment(&mut self, service: &file::Service, protocol: Protocol) -> Option<u16> {
        let written = service.mss.as_ref()?;
        if protocol == Protocol::Udp {
            self.problem(written.span(), "mss is TCP's, and the service is UDP", "leave it out");
        }
        Some(self.number(Some(written), 0, MAXIMUM_SEGMENTS, "mss") as u16)
    }

    fn forwarding(&mut self, written: Option<&Spanned<String>>) -> Forwarding {
        let word = self.choice(written, "forwarding", &Forwarding::ALL.map(Forwarding::name));
        Forwarding::ALL.into_iter().find(|one| one.name() == word).unwrap_or_default()
    }

    /// Who is taken out by what clients see comes back by checks; and by direct return, nothing is seen.
    fn refuse_observation(&mut self, written: &file::Service, service: &Service) {
        let Some(observe) = written.check.as_ref().and_then(|check| check.observe.as_ref()) else {
            return;
        };
        if service.check.observe.is_none() {
            return;
        }
        let problem = if service.check.kind == CheckKind::None {
            "nothing would bring a backend up again without a check"
        } else if service.protocol == Protocol::Udp {
            "by UDP, nothing tells whether a backend answers"
        } else if !service.forwarding.sees_replies() {
            "by direct return, backends' answers aren't seen"
        } else {
            return;
        };
        self.problem(observe.span(), problem, "leave observe out, or write \"none\"");
    }

    /// Only the NAT modes can change a port: in the others the packet reaches the backend as the
    /// client sent it.
    fn refuse_translation(&mut self, written: &file::Service, service: &Service) {
        if service.forwarding.sees_replies() {
            return;
        }
        for backend in written.backend.iter().map(Spanned::get_ref) {
            let Ok(place) = values::place(backend.address.get_ref()) else { continue };
            let differs = |bind: &&Bind| bind.port() != place.port();
            let Some(bind) = service.binds.iter().find(differs) else { continue };
            self.problem(
                backend.address.span(),
                format!(
                    "port {} of the backend differs from port {} that the service is bound to, and \
                     forwarding \"{}\" doesn't translate ports",
                    place.port(),
                    bind.port(),
                    service.forwarding.name()
                ),
                "give both the same port, or write forwarding = \"full-nat\" or \"nat\"",
            );
        }
    }

    /// Only an outer header can take a packet of one address family to a backend of the other.
    fn refuse_two_families(&mut self, written: &file::Service, service: &Service) {
        for bind in written.bind.get_ref() {
            let Ok(Bind::Address(address)) = values::bind(bind.get_ref()) else { continue };
            if !service.can_serve(address.ip()) {
                self.problem(
                    bind.span(),
                    format!(
                        "a backend's address isn't of the same family, IPv4 or IPv6, and forwarding \
                         \"{}\" doesn't translate between them",
                        service.forwarding.name()
                    ),
                    "make a service for each family, or write forwarding = \"ipip\" or \"gue\"",
                );
            }
        }
        let families = |backend: &Backend| backend.address.is_ipv4();
        let is_mixed =
            service.backends.windows(2).any(|two| families(&two[0]) != families(&two[1]));
        if is_mixed
            && !service.forwarding.encapsulates()
            && service.binds.iter().all(|bind| matches!(bind, Bind::Any(_)))
        {
            self.problem(
                written.bind.span(),
                "backends of both families, IPv4 and IPv6",
                "make a service for each family, or write forwarding = \"ipip\" or \"gue\"",
            );
        }
    }

    /// Of those that are known by their names, addresses are looked up that are of the same family as `bind`.
    fn backends(&mut self, service: &file::Service, bind: Option<&Bind>) -> Vec<Backend> {
        let unknown = match bind {
            Some(Bind::Address(SocketAddr::V6(_))) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        if service.backend.is_empty() {
            self.problem(
                service.name.span(),
                format!("service \"{}\" has no backend", service.name.get_ref()),
                "add a [[service.backend]] with name and address",
            );
        }
        if service.backend.len() > MOST_BACKENDS {
            self.problem(
                service.name.span(),
                format!("{} backends; {MOST_BACKENDS} at most", service.backend.len()),
                "split the service",
            );
        }
        self.unique(&service.backend, |backend| &backend.name, "backend");
        let mut addresses = HashMap::new();
        let mut backends = Vec::new();
        for backend in service.backend.iter().map(Spanned::get_ref) {
            self.name(&backend.name);
            let weight =
                self.number(backend.weight.as_ref(), 1, 0..=LARGEST_WEIGHT, "weight") as u16;
            let Some(place) = self.value(&backend.address, values::place) else { continue };
            let (address, host) = match &place {
                Place::Address(address) => (*address, None),
                Place::Name(host, port) => (SocketAddr::new(unknown, *port), Some(host.clone())),
            };
            let name = backend.name.get_ref();
            if let Some(first) = addresses.insert(place, name) {
                let written = backend.address.get_ref();
                self.problem(
                    backend.address.span(),
                    format!("{written} is given twice: as \"{first}\" and as \"{name}\""),
                    "remove one of them; a larger weight gives a backend more flows",
                );
            }
            let check_address = backend.check_address.as_ref();
            let check_port = backend.check_port.as_ref();
            backends.push(Backend {
                name: name.clone(),
                address,
                host,
                weight,
                backup: backend.backup.unwrap_or(false),
                check_address: check_address.and_then(|ip| self.value(ip, values::address)),
                check_port: check_port
                    .map(|port| self.number(Some(port), 1, 1..=65_535, "check_port") as u16),
                track: None,
            });
        }
        backends
    }
}
