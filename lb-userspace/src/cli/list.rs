//! `lb list`.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use ipnet::IpNet;

use super::{
    Outcome, Place,
    output::{Failure, print_json, print_table, short},
};
use crate::observe::{self, BackendRecord, FlowFilter, Overview, ServiceRecord};

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(subcommand)]
    what: What,
    /// As JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// What clients reach, and what goes through it
    Services,
    /// The servers behind the services, their state, share and counts
    Backends,
    /// Tracked connections
    Flows(FlowArgs),
    /// Consistent-hash tables: how many slots each backend has
    Rings,
    /// What became of packets, and why
    Reasons,
    /// The BPF maps themselves
    Maps,
}

#[derive(Debug, Args)]
struct FlowArgs {
    /// Only flows of this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only flows to this backend
    #[arg(long, value_name = "[SERVICE/]NAME")]
    backend: Option<String>,
    /// Only flows from these clients
    #[arg(long, value_name = "CIDR", value_parser = network)]
    client: Option<IpNet>,
    /// Only flows in this state
    #[arg(long, value_parser = ["syn", "established", "closing", "closed", "udp"])]
    state: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

fn network(text: &str) -> Result<IpNet, String> {
    let host = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse()
        .or_else(|_| host())
        .map_err(|_| "write an IPv4 address or network, as in 192.0.2.0/24".to_owned())
}

pub(super) fn list(place: &Place, arguments: &ListArgs) -> Outcome {
    let (pins, maps) = place.maps()?;
    let json = arguments.json;
    match &arguments.what {
        What::Services => {
            let records = Overview::read(&maps)?.services(&maps)?;
            if json {
                return print_json(&records);
            }
            print_services(&records);
        }
        What::Backends => {
            let records = Overview::read(&maps)?.backends(&maps)?;
            if json {
                return print_json(&records);
            }
            print_backends(&records);
        }
        What::Flows(filter) => {
            // A backend may be named as everywhere else.
            let (service, backend) =
                match filter.backend.as_deref().map(|name| name.split_once('/')) {
                    Some(Some((service, backend))) => (
                        filter.service.clone().or(Some(service.to_owned())),
                        Some(backend.to_owned()),
                    ),
                    _ => (filter.service.clone(), filter.backend.clone()),
                };
            let filter = FlowFilter {
                service,
                backend,
                client: filter.client,
                state: filter.state.clone(),
                limit: filter.limit,
            };
            let overview = Overview::without_flows(&maps)?;
            demand_known(&overview, &filter)?;
            let records = observe::flows(&maps, &overview, &filter)?;
            if json {
                return print_json(&records);
            }
            print_table(
                ["SERVICE", "BACKEND", "CLIENT", "VIP", "NAT", "STATE", ">AGE", ">IDLE"],
                records
                    .into_iter()
                    .map(|flow| {
                        [
                            flow.service,
                            flow.backend,
                            flow.client.to_string(),
                            flow.vip.to_string(),
                            flow.nat.map(|nat| nat.to_string()).unwrap_or_default(),
                            flow.state.to_owned(),
                            format!("{}s", flow.age_s),
                            format!("{}s", flow.idle_s),
                        ]
                    })
                    .collect(),
            );
        }
        What::Rings => {
            let records = Overview::without_flows(&maps)?.rings(&maps);
            if json {
                return print_json(&records);
            }
            let mut rows = Vec::new();
            for ring in records {
                for (backend, slots) in ring.slots {
                    rows.push([
                        ring.service.clone(),
                        ring.size.to_string(),
                        ring.generation.to_string(),
                        backend,
                        slots.to_string(),
                        percent(f64::from(slots) / f64::from(ring.size)),
                    ]);
                }
            }
            print_table(["SERVICE", ">SIZE", ">GENERATION", "BACKEND", ">SLOTS", ">SHARE"], rows);
        }
        What::Reasons => {
            let records = observe::reasons(&maps)?;
            if json {
                return print_json(&records);
            }
            print_table(
                ["REASON", "KIND", ">PACKETS", "MEANING"],
                records
                    .into_iter()
                    .map(|record| {
                        [
                            record.reason.to_owned(),
                            record.kind.to_owned(),
                            record.packets.to_string(),
                            record.description.to_owned(),
                        ]
                    })
                    .collect(),
            );
        }
        What::Maps => {
            let records = observe::maps(&pins, &maps)?;
            if json {
                return print_json(&records);
            }
            print_table(
                ["NAME", "TYPE", ">KEY", ">VALUE", ">ENTRIES", ">MAX", ">BYTES"],
                records
                    .into_iter()
                    .map(|map| {
                        [
                            map.name.to_owned(),
                            map.kind.to_owned(),
                            map.key_size.to_string(),
                            map.value_size.to_string(),
                            map.entries.to_string(),
                            map.max_entries.to_string(),
                            short(map.bytes),
                        ]
                    })
                    .collect(),
            );
        }
    }
    Ok(())
}

/// Demands that a filter names what there is, for a misspelt name would look like an empty table.
fn demand_known(overview: &Overview, filter: &FlowFilter) -> Outcome {
    let unknown = |what, name: &str, list| {
        Err(Failure::failed(format!(
            "no {what} {name}; `lb list {list}` shows those that there are"
        )))
    };
    match (&filter.service, &filter.backend) {
        (Some(service), _) if overview.services_named(service).is_empty() => {
            unknown("service", service, "services")
        }
        (_, Some(backend)) if overview.backends_named(backend).is_empty() => {
            unknown("backend", backend, "backends")
        }
        _ => Ok(()),
    }
}

pub(super) fn print_services(records: &[ServiceRecord]) {
    print_table(
        ["SERVICE", "BIND", "UP", ">FLOWS", ">NEW", ">PACKETS", ">BYTES", ">REPLIED"],
        records
            .iter()
            .map(|service| {
                [
                    service.name.clone(),
                    // One a line: a service on every address may have many.
                    service.bind.join("\n"),
                    format!("{}/{}", service.backends_up, service.backends_total),
                    short(service.flows),
                    short(service.new_flows),
                    short(service.packets),
                    short(service.bytes),
                    short(service.reply_bytes),
                ]
            })
            .collect(),
    );
}

pub(super) fn print_backends(records: &[BackendRecord]) {
    print_table(
        ["BACKEND", "ADDRESS", "STATE", ">WEIGHT", ">SHARE", ">FLOWS", ">NEW", "CHECK"],
        records
            .iter()
            .map(|backend| {
                [
                    format!("{}/{}", backend.service, backend.name),
                    backend.address.clone(),
                    backend.state.to_owned(),
                    backend.weight.to_string(),
                    percent(backend.share),
                    short(backend.flows),
                    short(backend.new_flows),
                    backend.check.detail.clone(),
                ]
            })
            .collect(),
    );
}

fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}
