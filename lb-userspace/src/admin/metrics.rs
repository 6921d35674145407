//! The metrics: every name stands here.

use std::{fmt::Write as _, sync::atomic::AtomicU64, time::Duration};

use anyhow::Result;
use lb_common::datapath::Table;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

use crate::{
    dataplane::Maps,
    log::Log,
    observe::{self, Status},
};

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;
type Counters = Family<Labels, Counter>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// Upper bounds of how long checks take, in seconds: from what is next door to HAProxy's usual timeouts.
const CHECK_SECONDS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// What only the controller knows, and counts as it happens. Copies share it.
#[derive(Clone, Debug)]
pub struct Live {
    check_durations: Histograms,
    check_failures: Counters,
    reloads: Counters,
    log: Log,
}

impl Live {
    /// Nothing yet.
    pub fn new(log: Log) -> Self {
        let live = Self {
            check_durations: Family::new_with_constructor(|| Histogram::new(CHECK_SECONDS)),
            check_failures: Counters::default(),
            reloads: Counters::default(),
            log,
        };
        for result in ["applied", "refused"] {
            add(&live.reloads, &vec![("result", result.to_owned())], 0);
        }
        live
    }

    /// Counts a check, and why it failed, if it did.
    pub fn count_check(
        &self,
        service: &str,
        backend: &str,
        duration: Duration,
        cause: Option<&'static str>,
    ) {
        let mut labels = backend_labels(service, backend);
        self.check_durations.get_or_create(&labels).observe(duration.as_secs_f64());
        if let Some(cause) = cause {
            labels.push(("cause", cause.to_owned()));
            add(&self.check_failures, &labels, 1);
        }
    }

    /// Counts a reload.
    pub fn count_reload(&self, is_applied: bool) {
        let result = if is_applied { "applied" } else { "refused" };
        add(&self.reloads, &vec![("result", result.to_owned())], 1);
    }

    /// How many lines of the log were lost.
    pub fn lost_lines(&self) -> u64 {
        self.log.lost()
    }

    /// Forgets a backend that isn't configured any longer.
    pub fn forget(&self, service: &str, backend: &str, causes: &[&'static str]) {
        let labels = backend_labels(service, backend);
        self.check_durations.remove(&labels);
        for cause in causes {
            let mut labels = labels.clone();
            labels.push(("cause", (*cause).to_owned()));
            self.check_failures.remove(&labels);
        }
    }
}

fn backend_labels(service: &str, backend: &str) -> Labels {
    vec![("service", service.to_owned()), ("backend", backend.to_owned())]
}

/// All metrics in the OpenMetrics text format.
pub(super) fn render(status: &Status, maps: &Maps, live: &Live) -> Result<String> {
    let mut registry = Registry::with_prefix("lb");
    services(&mut registry, status);
    backends(&mut registry, status);
    let durations = live.check_durations.clone();
    registry.register("check_duration_seconds", "How long health checks took", durations);
    registry.register("check_failures", "Health checks that failed", live.check_failures.clone());
    registry.register("config_reloads", "Reloads of the configuration", live.reloads.clone());
    let lost =
        counters(&mut registry, "log_lines_lost", "Lines of the log that nobody read in time");
    add(&lost, &Labels::new(), live.lost_lines());

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

/// The same in the older text format (Prometheus, 0.0.4), which has no info, names counters in full, and ends
/// without a mark.
pub(super) fn in_text_format(metrics: &str) -> String {
    let mut text = String::with_capacity(metrics.len());
    for line in metrics.lines().filter(|line| *line != "# EOF") {
        let declared = line.strip_prefix("# ").and_then(|rest| {
            let mut words = rest.splitn(3, ' ');
            Some((words.next()?, words.next()?, words.next()?))
        });
        let kind = |name: &str| {
            let declaration = format!("# TYPE {name} ");
            metrics.lines().find_map(|line| line.strip_prefix(&declaration))
        };
        // Writing to a string doesn't fail.
        let _: std::fmt::Result = match declared {
            Some((word, name, rest)) => match kind(name) {
                Some("counter") => writeln!(text, "# {word} {name}_total {rest}"),
                Some("info") if word == "TYPE" => writeln!(text, "# TYPE {name}_info gauge"),
                Some("info") => writeln!(text, "# {word} {name}_info {rest}"),
                _ => writeln!(text, "{line}"),
            },
            None => writeln!(text, "{line}"),
        };
    }
    text
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
        let labels = backend_labels(&backend.service, &backend.name);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_names_what_it_has() {
        let metrics = "# HELP lb_a A.\n# TYPE lb_a counter\nlb_a_total{x=\"1\"} 2\n# HELP lb_b B.\n# TYPE lb_b \
                       gauge\nlb_b 1\n# HELP lb_c C.\n# TYPE lb_c info\nlb_c_info{v=\"1\"} 1\n# EOF\n";
        assert_eq!(
            in_text_format(metrics),
            "# HELP lb_a_total A.\n# TYPE lb_a_total counter\nlb_a_total{x=\"1\"} 2\n# HELP lb_b B.\n# TYPE \
             lb_b gauge\nlb_b 1\n# HELP lb_c_info C.\n# TYPE lb_c_info gauge\nlb_c_info{v=\"1\"} 1\n"
        );
    }
}
