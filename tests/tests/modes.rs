//! Every way of forwarding at once in one balancer, end to end, in native and in generic mode: what
//! the backend's socket reports, large files both ways, and what an independent decoder sees.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

use anyhow::{Context, Result, ensure};
use lb_tests::{
    bed::{BALANCER, Bed},
    capture::{Capture, Decoded},
    client::sha256,
    wait::wait_until,
};

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");
const DECAPSULATOR: &str = env!("CARGO_BIN_EXE_decapsulator");
const VIP: &str = "10.91.0.100";
const CLIENT: &str = "10.91.0.1";

/// A service and its only backend. The configuration names them alike.
struct Mode {
    forwarding: &'static str,
    /// The service's port.
    port: u16,
    /// The host that the backend is on.
    host: &'static str,
    /// The host's address.
    address: &'static str,
    /// The backend's port.
    backend_port: u16,
    /// Protocols in a frame to the backend, as tshark names them.
    protocols: &'static str,
}

const MODES: [Mode; 5] = [
    Mode {
        forwarding: "full-nat",
        port: 8080,
        host: "mgmt01",
        address: "10.91.0.101",
        backend_port: 8080,
        protocols: "eth:ethertype:ip:tcp",
    },
    Mode {
        forwarding: "nat",
        port: 80,
        host: "mgmt01",
        address: "10.91.0.101",
        backend_port: 8081,
        protocols: "eth:ethertype:ip:tcp",
    },
    Mode {
        forwarding: "dsr",
        port: 8082,
        host: "mgmt02",
        address: "10.91.0.102",
        backend_port: 8082,
        protocols: "eth:ethertype:ip:tcp",
    },
    Mode {
        forwarding: "ipip",
        port: 8083,
        host: "mgmt03",
        address: "10.91.0.103",
        backend_port: 8083,
        protocols: "eth:ethertype:ip:ip:tcp",
    },
    Mode {
        forwarding: "gue",
        port: 8084,
        host: "mgmt03",
        address: "10.91.0.103",
        backend_port: 8084,
        protocols: "eth:ethertype:ip:udp:ip:tcp",
    },
];

/// A balancer with all of them, and what takes outer headers off at a backend.
struct Modes {
    bed: Bed,
    _decapsulator: Child,
}

impl Modes {
    fn new(xdp_mode: &'static str) -> Result<Self> {
        let mut bed = Bed::without_controller(LB, xdp_mode, 3)?;
        let mut more = String::new();
        for mode in &MODES[1..] {
            let Mode { forwarding, port, address, backend_port, host, .. } = mode;
            more += &format!(
                "[[service]]\nname = \"{forwarding}\"\nbind = [\"{VIP}:{port}\"]\nforwarding = \
                 \"{forwarding}\"\n[service.check]\ninterval = \
                 \"200ms\"\n[[service.backend]]\nname = \"{forwarding}\"\naddress = \
                 \"{address}:{backend_port}\"\n"
            );
            let listen = format!("0.0.0.0:{backend_port}");
            bed.start_nginx(bed.backend_namespace(host)?, forwarding, &listen)?;
        }
        // By "nat" the replies must pass through the balancer.
        bed.on_backend("mgmt01", "ip", &["route", "add", CLIENT, "via", BALANCER])?;
        for host in ["mgmt02", "mgmt03"] {
            for setting in ["arp_ignore=1", "arp_announce=2"] {
                let setting = format!("net.ipv4.conf.all.{setting}");
                bed.on_backend(host, "sysctl", &["-qw", &setting])?;
            }
            bed.on_backend(host, "ip", &["addr", "add", VIP, "dev", "lo"])?;
        }
        // Merged segments have no checksums of their own, and a program can't finish them.
        bed.on_backend("mgmt03", "ethtool", &["-K", "eth0", "gro", "off"])?;
        let decapsulator = start_decapsulator(&bed)?;
        // Room for the outer headers.
        bed.client.ip(&["route", "add", VIP, "dev", "eth0", "mtu", "1400"])?;

        bed.write_config_with(&more, |name| name == "mgmt01")?;
        bed.start_controller(&[])?;
        wait_until("backends are up", || {
            let services = bed.json(&["list", "services", "--json"])?;
            let services = services.as_array().context("an array")?;
            Ok(services.len() == MODES.len()
                && services.iter().all(|service| service["backends_up"] == 1))
        })
        .with_context(|| fs::read_to_string(bed.log()).unwrap_or_default())?;
        Ok(Self { bed, _decapsulator: decapsulator })
    }

    fn curl(&self, mode: &Mode, page: &str, more: &[&str]) -> Result<String> {
        let url = format!("http://{VIP}:{}{page}", mode.port);
        let answer = self.bed.client.run("curl", &[&["-sSf", "-m", "60", &url], more].concat());
        answer.with_context(|| mode.forwarding)
    }
}

/// Starts to take outer headers off on `mgmt03`.
fn start_decapsulator(bed: &Bed) -> Result<Child> {
    let mut command = bed.backend_namespace("mgmt03")?.command(DECAPSULATOR);
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let said = child.stdout.take().context("its output")?;
    let line = BufReader::new(said).lines().next().context("it ended")??;
    ensure!(line == "ready", "{line}");
    Ok(child)
}

#[test]
fn backends_see_the_client_and_large_files_arrive_whole() -> Result<()> {
    const MEGABYTES: usize = 100;
    for xdp_mode in ["native", "generic"] {
        let modes = Modes::new(xdp_mode)?;
        let big = modes.bed.backend_file("mgmt01", "../big");
        let mut bytes = vec![0; MEGABYTES << 20];
        fastrand::Rng::with_seed(2).fill(&mut bytes);
        fs::write(&big, bytes)?;
        let wanted = sha256(&big)?;
        let got = modes.bed.backend_file("mgmt01", "../got");
        for mode in &MODES {
            let what = format!("{xdp_mode}, {}", mode.forwarding);
            let said = modes.curl(mode, "/peer", &["-w", " %{local_ip}:%{local_port}"])?;
            let (seen, own) = said.split_once(' ').context("two addresses")?;
            if mode.forwarding == "full-nat" {
                ensure!(seen.starts_with(&format!("{BALANCER}:")), "{what}: {said}");
            } else {
                ensure!(seen == own && own.starts_with(&format!("{CLIENT}:")), "{what}: {said}");
            }
            modes.curl(mode, "/big", &["-o", got.to_str().context("UTF-8")?])?;
            ensure!(sha256(&got)? == wanted, "{what}: download");
            modes.curl(mode, "/upload/big", &["-T", big.to_str().context("UTF-8")?])?;
            let name = if mode.forwarding == "full-nat" { mode.host } else { mode.forwarding };
            let upload = modes.bed.backend_file(name, "upload/big");
            ensure!(sha256(&upload)? == wanted, "{what}: upload");
        }
        for reason in ["needs_fragmentation", "no_headroom", "no_egress", "tables_incomplete"] {
            ensure!(modes.bed.reason(reason)? == 0, "{xdp_mode}: {reason}");
        }
    }
    Ok(())
}

#[test]
fn a_backend_receives_exactly_the_headers_that_the_mode_promises() -> Result<()> {
    const FIN: u16 = 0x001;
    for xdp_mode in ["native", "generic"] {
        let modes = Modes::new(xdp_mode)?;
        for mode in &MODES {
            let file = modes.bed.backend_file("mgmt01", &format!("{}.pcap", mode.forwarding));
            let capture = Capture::start(modes.bed.backend_namespace(mode.host)?, &file)?;
            let said = modes.curl(mode, "/peer", &[])?;
            let (source, source_port) = said.split_once(':').context("an address and a port")?;
            let is_nat = ["full-nat", "nat"].contains(&mode.forwarding);
            let receiver = if is_nat { mode.address } else { VIP };
            let ports = format!("{source_port}>{}", mode.backend_port);
            let expected = match mode.forwarding {
                "ipip" | "gue" => [
                    &format!("{BALANCER},{source}"),
                    &format!("{},{receiver}", mode.address),
                    "64,63",
                ],
                _ => [source, receiver, "63"],
            };
            let requests = || -> Result<Vec<Decoded>> {
                let is_request = |frame: &Decoded| frame.tcp_ports == ports;
                Ok(capture.decoded()?.into_iter().filter(is_request).collect())
            };
            wait_until("the connection's end is captured", || {
                Ok(requests()?.iter().any(|frame| frame.flags & FIN != 0))
            })?;
            for frame in requests()? {
                let seen = [&frame.sources, &frame.destinations, &frame.hops];
                ensure!(seen == expected, "{xdp_mode}: {frame:?}");
                ensure!(frame.protocols.starts_with(mode.protocols), "{xdp_mode}: {frame:?}");
            }
        }
    }
    Ok(())
}
