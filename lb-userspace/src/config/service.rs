//! What a file says of services and their backends.

use std::{collections::HashMap, net::SocketAddrV4};

use lb_common::abi::Forwarding;
use toml::Spanned;

use super::{Backend, Service, Timeouts, file, validate::Validator, values};

/// Largest weight, as in HAProxy.
const LARGEST_WEIGHT: i64 = 256;
/// Most backends of one service: a ring has 100 slots for each, and 2^20 - 1 in all.
const MOST_BACKENDS: usize = 10_000;

impl Validator {
    pub(super) fn service(&mut self, service: &file::Service, timeouts: Timeouts) -> Service {
        self.name(&service.name);
        self.choice(service.protocol.as_ref(), "protocol", &["tcp"], &["udp"]);
        let forwarding = self.forwarding(service.forwarding.as_ref());
        self.choice(
            service.balance.as_ref(),
            "balance",
            &["maglev"],
            &["source", "roundrobin", "leastconn"],
        );
        self.choice(service.on_down.as_ref(), "on_down", &["keep"], &["reset", "move"]);
        self.unavailable(service.affinity.as_ref().map(Spanned::span), "affinity", "leave it out");
        if let Some(slow_start) = &service.slow_start
            && self.value(slow_start, values::duration).is_some_and(|duration| !duration.is_zero())
        {
            self.unavailable(
                Some(slow_start.span()),
                "slow_start",
                "leave it out, or write \"0s\"",
            );
        }
        for (list, name) in [(&service.allow, "allow"), (&service.deny, "deny")] {
            let filled = list.as_ref().filter(|list| !list.get_ref().is_empty());
            self.unavailable(
                filled.map(Spanned::span),
                name,
                "leave it empty, and filter before the balancer",
            );
        }
        if service.bind.get_ref().is_empty() {
            self.problem(service.bind.span(), "no address", "write bind = [\"192.0.2.1:8080\"]");
        }
        let binds = service.bind.get_ref();
        let binds: Vec<SocketAddrV4> =
            binds.iter().filter_map(|bind| self.value(bind, values::address_and_port)).collect();
        self.refuse_translation(service, forwarding, &binds);
        Service {
            name: service.name.get_ref().clone(),
            binds,
            forwarding,
            timeouts: service
                .timeouts
                .as_ref()
                .map_or(timeouts, |own| self.timeouts(own, timeouts)),
            check: self.check(&service.check),
            backends: self.backends(service),
        }
    }

    fn forwarding(&mut self, written: Option<&Spanned<String>>) -> Forwarding {
        let word = self.choice(written, "forwarding", &Forwarding::ALL.map(Forwarding::name), &[]);
        Forwarding::ALL.into_iter().find(|one| one.name() == word).unwrap_or_default()
    }

    /// Only the NAT modes can change a port: in the others the packet reaches the backend as the
    /// client sent it.
    fn refuse_translation(
        &mut self,
        service: &file::Service,
        forwarding: Forwarding,
        binds: &[SocketAddrV4],
    ) {
        if forwarding.sees_replies() {
            return;
        }
        for backend in service.backend.iter().map(Spanned::get_ref) {
            let Ok(address) = values::address_and_port(backend.address.get_ref()) else { continue };
            let Some(bind) = binds.iter().find(|bind| bind.port() != address.port()) else {
                continue;
            };
            self.problem(
                backend.address.span(),
                format!(
                    "port {} of the backend differs from port {} that the service is bound to, and \
                     forwarding \"{}\" doesn't translate ports",
                    address.port(),
                    bind.port(),
                    forwarding.name()
                ),
                "give both the same port, or write forwarding = \"full-nat\" or \"nat\"",
            );
        }
    }

    fn backends(&mut self, service: &file::Service) -> Vec<Backend> {
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
            let backup = backend.backup.as_ref().filter(|backup| *backup.get_ref());
            self.unavailable(backup.map(Spanned::span), "backup", "leave it out");
            let weight =
                self.number(backend.weight.as_ref(), 1, 0..=LARGEST_WEIGHT, "weight") as u16;
            let Some(address) = self.value(&backend.address, values::address_and_port) else {
                continue;
            };
            let name = backend.name.get_ref();
            if let Some(first) = addresses.insert(address, name) {
                self.problem(
                    backend.address.span(),
                    format!("{address} is given twice: as \"{first}\" and as \"{name}\""),
                    "remove one of them; a larger weight gives a backend more flows",
                );
            }
            backends.push(Backend { name: name.clone(), address, weight });
        }
        backends
    }
}
