//! The metrics: every name stands here.

use std::sync::atomic::AtomicU64;

use anyhow::Result;
use lb_common::datapath::Table;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};

use crate::{
    dataplane::Maps,
    observe::{self, Status},
};

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;
type Counters = Family<Labels, Counter>;

/// All metrics in the OpenMetrics text format.
pub(super) fn render(status: &Status, maps: &Maps) -> Result<String> {
    let mut registry = Registry::with_prefix("lb");
    services(&mut registry, status);
    backends(&mut registry, status);

    let packets = counters(&mut registry, "packets", "Packets by what became of them");
    for reason in observe::reasons(maps)? {
        add(&packets, &vec![("reason", reason.reason.to_owned())], reason.packets);
    }
    let entries =
        gauges(&mut registry, "flow_table_entries", "Entries in use; a flow has one a direction");
    let capacity = gauges(&mut registry, "flow_table_capacity", "Entries that there is room for");
    for (table, (used, room)) in [
        ("established", maps.ipv4.usage(Table::Established)?),
        ("embryonic", maps.ipv4.usage(Table::Embryonic)?),
        ("established_ipv6", maps.ipv6.usage(Table::Established)?),
        ("embryonic_ipv6", maps.ipv6.usage(Table::Embryonic)?),
    ] {
        set(&entries, &vec![("table", table.to_owned())], used.into());
        set(&capacity, &vec![("table", table.to_owned())], room.into());
    }
    let modes = gauges(&mut registry, "xdp_mode", "1: the program is attached in this mode");
    for interface in status.controller.iter().flat_map(|controller| &controller.interfaces) {
        let labels = [("interface", &interface.name), ("mode", &interface.mode)];
        set(&modes, &labels.map(|(name, value)| (name, value.clone())).to_vec(), 1.0);
    }
    registry.register(
        "build",
        "The running version",
        Info::new([("version", env!("CARGO_PKG_VERSION"))]),
    );

    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn services(registry: &mut Registry, status: &Status) {
    let flows = gauges(registry, "service_flows", "Connections under way");
    let new_flows = counters(registry, "service_new_flows", "Completed handshakes");
    let packets = counters(registry, "service_packets", "Packets forwarded");
    let bytes = counters(registry, "service_bytes", "Bytes of forwarded IP datagrams");
    for service in &status.services {
        let labels = vec![("service", service.name.clone())];
        set(&flows, &labels, service.flows as f64);
        add(&new_flows, &labels, service.new_flows);
        for (direction, packet_count, byte_count) in [
            ("to_backend", service.packets, service.bytes),
            ("to_client", service.reply_packets, service.reply_bytes),
        ] {
            let mut labels = labels.clone();
            labels.push(("direction", direction.to_owned()));
            add(&packets, &labels, packet_count);
            add(&bytes, &labels, byte_count);
        }
    }
}

fn backends(registry: &mut Registry, status: &Status) {
    let up = gauges(registry, "backend_up", "1: new connections may go to it");
    let weight = gauges(registry, "backend_weight", "Weight in force");
    let share = gauges(registry, "backend_ring_share", "Part of the ring, 0 to 1");
    let flows = gauges(registry, "backend_flows", "Connections under way");
    let new_flows = counters(registry, "backend_new_flows", "Completed handshakes");
    let packets = counters(registry, "backend_packets", "Packets forwarded to it");
    let bytes = counters(registry, "backend_bytes", "Bytes of IP datagrams forwarded to it");
    for backend in &status.backends {
        let labels = vec![("service", backend.service.clone()), ("backend", backend.name.clone())];
        set(&up, &labels, if backend.state == "up" { 1.0 } else { 0.0 });
        set(&weight, &labels, backend.weight.into());
        set(&share, &labels, backend.share);
        set(&flows, &labels, backend.flows as f64);
        add(&new_flows, &labels, backend.new_flows);
        add(&packets, &labels, backend.packets);
        add(&bytes, &labels, backend.bytes);
    }
}

fn gauges(registry: &mut Registry, name: &str, help: &str) -> Gauges {
    let family = Gauges::default();
    registry.register(name, help, family.clone());
    family
}

/// The library adds `_total` to the name.
fn counters(registry: &mut Registry, name: &str, help: &str) -> Counters {
    let family = Counters::default();
    registry.register(name, help, family.clone());
    family
}

fn set(family: &Gauges, labels: &Labels, value: f64) {
    family.get_or_create(labels).set(value);
}

fn add(family: &Counters, labels: &Labels, count: u64) {
    family.get_or_create(labels).inc_by(count);
}
