//! Backends that are known by their names: those are looked up again and again, as long as each answer says that it holds.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{
    Resolver, TokioResolver,
    config::{LookupIpStrategy, NameServerConfig, ResolverConfig},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
};
use lb_common::abi::{Lifecycle, Text};
use tokio::time::{self, Instant};

use super::{
    controller::{Controller, Event},
    state::State,
};
use crate::{
    config::{self, Config},
    health::Task,
};

/// How long an answer is believed at the least and at the most, whatever it says itself.
const TIMES_TO_LIVE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);
/// Until a name is asked for again that wasn't answered.
const RETRY: Duration = Duration::from_secs(5);

/// A name, and whether its IPv4 addresses are asked for, or those of IPv6.
pub(super) type Question = (String, bool);

/// What is known of names.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Addresses, in their order.
    known: HashMap<Question, BTreeSet<IpAddr>>,
    /// What asks for each.
    asked: HashMap<Question, Task>,
    /// Who is asked.
    servers: Vec<SocketAddr>,
}

impl Names {
    /// Gives each backend by name in a configuration its address: the one that it had, as long as the name still has that;
    /// else the lowest, so that all balancers choose the same. Where nothing is known of a name, a backend keeps what it
    /// had, if it had the same name in the `earlier` configuration, or that isn't known. Returns whether there are others now.
    pub(super) fn resolve(
        &self,
        config: &mut Config,
        before: &State,
        earlier: Option<&Config>,
    ) -> bool {
        let mut named = config.named_backends().peekable();
        if named.peek().is_none() {
            return false;
        }
        let active = before.backends.values().filter(|state| {
            state.info.lifecycle == Lifecycle::Active && !state.address().ip().is_unspecified()
        });
        let current: HashMap<(&str, &str), IpAddr> = active
            .filter_map(|state| {
                let service = before.services.get(&state.info.service)?;
                Some(((service.name.as_str(), state.info.name.as_str()), state.address().ip()))
            })
            .collect();
        let earlier = earlier.map(Config::hosts);
        let mut is_changed = false;
        for (service, backend) in named {
            let its_name = (service, backend.name.as_str());
            let had_it = earlier
                .as_ref()
                .is_none_or(|hosts| hosts.get(&its_name).copied() == backend.host.as_deref());
            let current = current.get(&its_name).copied().filter(|_| had_it);
            let current = current.filter(|ip| ip.is_ipv4() == backend.address.is_ipv4());
            let Some(question) = question(backend) else { continue };
            let known = self.known.get(&question);
            let chosen = match known {
                Some(known) => current.filter(|ip| known.contains(ip)).or(known.first().copied()),
                None => current,
            };
            if let Some(ip) = chosen.filter(|ip| *ip != backend.address.ip()) {
                backend.address.set_ip(ip);
                is_changed = true;
            }
        }
        is_changed
    }
}

/// What is asked for a backend's address.
fn question(backend: &config::Backend) -> Option<Question> {
    Some((backend.host.clone()?, backend.address.is_ipv4()))
}

/// Asks the servers that are named, or those of this host.
fn resolver(servers: &[SocketAddr], is_ipv4: bool) -> Result<TokioResolver, NetError> {
    let mut builder = if servers.is_empty() {
        TokioResolver::builder_tokio()?
    } else {
        let server = |address: &SocketAddr| {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            for connection in &mut server.connections {
                connection.port = address.port();
            }
            server
        };
        let servers = ResolverConfig::from_name_servers(servers.iter().map(server).collect());
        Resolver::builder_with_config(servers, TokioRuntimeProvider::default())
    };
    let options = builder.options_mut();
    options.ip_strategy =
        if is_ipv4 { LookupIpStrategy::Ipv4Only } else { LookupIpStrategy::Ipv6Only };
    options.cache_size = 0;
    // Of those that the packet path doesn't send from.
    options.os_port_selection = true;
    builder.build()
}

/// Asks once. Returns the addresses that may be a backend's, and until when they are to be believed.
async fn ask(resolver: &TokioResolver, name: &str) -> (Result<BTreeSet<IpAddr>, String>, Instant) {
    let result = resolver.lookup_ip(name).await;
    let now = Instant::now();
    match result {
        Ok(answer) => {
            let left = Instant::from_std(answer.valid_until()).saturating_duration_since(now);
            let until = now + left.clamp(*TIMES_TO_LIVE.start(), *TIMES_TO_LIVE.end());
            let addresses: BTreeSet<IpAddr> =
                answer.iter().filter(|ip| config::is_reachable(*ip)).collect();
            if addresses.is_empty() {
                return (Err("it has no address that a backend may have".to_owned()), now + RETRY);
            }
            (Ok(addresses), until)
        }
        Err(error) => (Err(words(&error)), now + RETRY),
    }
}

fn words(error: &NetError) -> String {
    match error {
        _ if error.is_nx_domain() => "there is no such name".to_owned(),
        _ if error.is_no_records_found() => "it has no address of the service's family".to_owned(),
        NetError::Dns(DnsError::ResponseCode(code)) => format!("the server of names says {code}"),
        NetError::Timeout | NetError::NoConnections => "no server of names answers".to_owned(),
        other => other.to_string(),
    }
}

impl Controller {
    /// Asks for the names in the configuration, and no longer for others.
    pub(super) fn ask_names(&mut self) {
        let mut asked = HashMap::new();
        let mut resolvers: HashMap<bool, TokioResolver> = HashMap::new();
        let servers = self.config.name_servers.clone();
        let are_others = servers != self.names.servers;
        let mut result = Ok(());
        for (_, backend) in self.config.named_backends() {
            let Some(question) = question(backend) else { continue };
            if asked.contains_key(&question) {
                continue;
            }
            if let Some(task) = self.names.asked.remove(&question).filter(|_| !are_others) {
                asked.insert(question, task);
                continue;
            }
            let family = question.1;
            let resolver = match resolvers.get(&family) {
                Some(resolver) => resolver.clone(),
                None => match resolver(&servers, family) {
                    Ok(resolver) => resolvers.entry(family).or_insert(resolver).clone(),
                    Err(error) => {
                        result = Err(format!(
                            "names can't be looked up, until a reload finds how: {error}"
                        ));
                        break;
                    }
                },
            };
            let (events, its) = (self.events.clone(), question.clone());
            let task = Task::spawn(async move {
                loop {
                    let (result, until) = ask(&resolver, &its.0).await;
                    if events.send(Event::Named(its.clone(), result)).await.is_err() {
                        return;
                    }
                    time::sleep_until(until).await;
                }
            });
            asked.insert(question, task);
        }
        self.troubles.note("names", result);
        self.names.known.retain(|question, _| asked.contains_key(question));
        self.names.asked = asked;
        self.names.servers = servers;
    }

    /// Takes in what a name stands for. What can't be looked up keeps the address that it had. Returns whether something else
    /// is to be shown.
    pub(super) fn take_in_name(
        &mut self,
        question: Question,
        result: Result<BTreeSet<IpAddr>, String>,
    ) -> bool {
        if !self.names.asked.contains_key(&question) {
            return false;
        }
        let trouble = format!("name {}", question.0);
        // What this host has itself, it can't forward to.
        let is_own = |ip: &IpAddr| self.network.addresses.iter().any(|(_, own)| own == ip);
        let result = result.and_then(|mut addresses| {
            addresses.retain(|ip| !is_own(ip));
            let why = "it has no address but this host's own".to_owned();
            if addresses.is_empty() { Err(why) } else { Ok(addresses) }
        });
        let addresses = match result {
            Ok(addresses) => addresses,
            Err(why) => {
                let are_without = self.tell_unresolved(&question, &why);
                let rest = if are_without { "have no address yet" } else { "keep their addresses" };
                let told = format!("{} can't be looked up: {why}; its backends {rest}", question.0);
                self.troubles.note(trouble, Err(told));
                return are_without;
            }
        };
        self.troubles.note(trouble, Ok(()));
        if self.names.known.insert(question, addresses.clone()) == Some(addresses) {
            return false;
        }
        let mut config = self.config.clone();
        if !self.names.resolve(&mut config, &self.wanted, Some(&self.config)) {
            return false;
        }
        let moved: Vec<(String, SocketAddr)> = config
            .named_backends()
            .zip(self.config.named_backends())
            .filter(|((_, new), (_, old))| new.address != old.address)
            .map(|((service, new), _)| {
                (
                    format!("{service}/{} is {}", new.name, new.host.as_deref().unwrap_or("")),
                    new.address,
                )
            })
            .collect();
        let result = match self.arrange(&config) {
            Ok(arranged) => {
                for (what, address) in moved {
                    tracing::info!(%address, "{what}");
                }
                self.config = config;
                // What fails is logged there, and tried again.
                let _: Result<(), String> = self.take_over(arranged);
                Ok(())
            }
            Err(why) => Err(format!("backends can't have the addresses of their names: {why}")),
        };
        self.troubles.note("addresses of names", result);
        false
    }

    /// Says of backends that have no address yet why that is. Returns whether there are some.
    fn tell_unresolved(&mut self, asked: &Question, why: &str) -> bool {
        let named = self.config.named_backends().filter(|(_, backend)| {
            backend.address.ip().is_unspecified() && question(backend).as_ref() == Some(asked)
        });
        let unresolved: Vec<(String, String)> =
            named.map(|(service, backend)| (service.to_owned(), backend.name.clone())).collect();
        for (service, backend) in &unresolved {
            let index = self.wanted.find_backend(service, backend);
            if let Some(state) = index.and_then(|index| self.wanted.backends.get_mut(&index)) {
                state.info.detail = Text::new(&format!("{}: {why}", asked.0));
            }
        }
        !unresolved.is_empty()
    }
}
