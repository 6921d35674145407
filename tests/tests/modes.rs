//! Every way of forwarding at once in one balancer, over both address families, end to end, in native
//! and in generic mode: what the backend's socket reports, large files both ways, and what an
//! independent decoder sees.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

use anyhow::{Context, Result, ensure};
use lb_tests::{
    bed::Bed,
    capture::{Capture, Decoded, Network},
    client::{ask, sha256},
    wait::wait_until,
};
use xtask::netns::Namespace;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");
const DECAPSULATOR: &str = env!("CARGO_BIN_EXE_decapsulator");
const RESPONDER: &str = env!("CARGO_BIN_EXE_responder");

/// Addresses of one family.
struct Family {
    name: &'static str,
    /// What the last number of an address is put behind.
    prefix: &'static str,
    bits: u8,
}

const IPV4: Family = Family { name: "ipv4", prefix: "10.91.0.", bits: 24 };
const IPV6: Family = Family { name: "ipv6", prefix: "fd00:91::", bits: 64 };

impl Family {
    fn address(&self, last: u8) -> String {
        format!("{}{last}", self.prefix)
    }

    /// An address and port as they are written.
    fn socket(&self, last: u8, port: u16) -> String {
        let address = self.address(last);
        if self.bits == 64 { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
    }

    fn network(&self, sources: &str, destinations: &str, hops: &str) -> [Network; 2] {
        let [sources, destinations, hops] = [sources, destinations, hops].map(str::to_owned);
        let own = Network { sources, destinations, hops };
        if self.bits == 64 { [Network::default(), own] } else { [own, Network::default()] }
    }
}

const VIP: u8 = 100;
const CLIENT: u8 = 1;
const BALANCER: u8 = 10;

/// A service and its only backend, for TCP and for UDP.
struct Mode {
    forwarding: &'static str,
    /// Of what clients send to.
    outside: &'static Family,
    /// Of the backend.
    inside: &'static Family,
    port: u16,
    /// The number of the host that the backend is on.
    host: u8,
    backend_port: u16,
    /// Protocols in a frame to the backend, as tshark names them: behind UDP, its decoder of IPv4 looks
    /// first and hands IPv6 on.
    protocols: &'static str,
}

impl Mode {
    const fn new(
        forwarding: &'static str,
        [outside, inside]: [&'static Family; 2],
        ports: [u16; 2],
        host: u8,
        protocols: &'static str,
    ) -> Self {
        let [port, backend_port] = ports;
        Self { forwarding, outside, inside, port, host, backend_port, protocols }
    }

    fn name(&self) -> String {
        format!("{}-{}-in-{}", self.forwarding, self.outside.name, self.inside.name)
    }

    fn encapsulates(&self) -> bool {
        ["ipip", "gue"].contains(&self.forwarding)
    }

    fn translates(&self) -> bool {
        ["nat", "full-nat"].contains(&self.forwarding)
    }

    fn host_name(&self) -> String {
        format!("mgmt{:02}", self.host)
    }

    /// The backend's own address and port.
    fn backend(&self) -> String {
        self.inside.socket(100 + self.host, self.backend_port)
    }
}

const MODES: [Mode; 14] = [
    Mode::new("full-nat", [&IPV4, &IPV4], [8080, 8080], 1, "eth:ethertype:ip:tcp"),
    Mode::new("nat", [&IPV4, &IPV4], [80, 8081], 1, "eth:ethertype:ip:tcp"),
    Mode::new("dsr", [&IPV4, &IPV4], [8082, 8082], 2, "eth:ethertype:ip:tcp"),
    Mode::new("ipip", [&IPV4, &IPV4], [8083, 8083], 3, "eth:ethertype:ip:ip:tcp"),
    Mode::new("gue", [&IPV4, &IPV4], [8084, 8084], 3, "eth:ethertype:ip:udp:ip:tcp"),
    Mode::new("full-nat", [&IPV6, &IPV6], [8080, 8080], 1, "eth:ethertype:ipv6:tcp"),
    Mode::new("nat", [&IPV6, &IPV6], [80, 8081], 1, "eth:ethertype:ipv6:tcp"),
    Mode::new("dsr", [&IPV6, &IPV6], [8082, 8082], 2, "eth:ethertype:ipv6:tcp"),
    Mode::new("ipip", [&IPV6, &IPV6], [8083, 8083], 3, "eth:ethertype:ipv6:ipv6:tcp"),
    Mode::new("gue", [&IPV6, &IPV6], [8084, 8084], 3, "eth:ethertype:ipv6:udp:ip:ipv6:tcp"),
    Mode::new("ipip", [&IPV4, &IPV6], [8085, 8085], 3, "eth:ethertype:ipv6:ip:tcp"),
    Mode::new("gue", [&IPV4, &IPV6], [8086, 8086], 3, "eth:ethertype:ipv6:udp:ip:tcp"),
    Mode::new("ipip", [&IPV6, &IPV4], [8085, 8085], 3, "eth:ethertype:ip:ipv6:tcp"),
    Mode::new("gue", [&IPV6, &IPV4], [8086, 8086], 3, "eth:ethertype:ip:udp:ip:ipv6:tcp"),
];

/// A balancer with all of them, and what answers and takes outer headers off at the backends.
struct Modes {
    bed: Bed,
    helpers: Vec<Child>,
}

impl Modes {
    fn new(xdp_mode: &'static str) -> Result<Self> {
        let bed = Bed::without_controller(LB, xdp_mode, 3)?;
        let mut modes = Self { bed, helpers: Vec::new() };
        modes.address_hosts()?;
        let mut services = String::new();
        for mode in &MODES {
            for protocol in ["tcp", "udp"] {
                services += &service(mode, protocol);
            }
        }
        modes.start_servers()?;
        modes.bed.write_config_of(&services)?;
        modes.bed.start_controller(&[])?;
        modes.wait_for_backends()?;
        Ok(modes)
    }

    /// Gives every host addresses of both families, and the backends what their modes need.
    fn address_hosts(&self) -> Result<()> {
        let bed = &self.bed;
        let hosts = ["mgmt01", "mgmt02", "mgmt03"].map(|name| bed.backend_namespace(name));
        let [first, second, third] = hosts;
        let (first, second, third) = (first?, second?, third?);
        let places = [(&bed.client, CLIENT), (&bed.balancer, BALANCER)];
        for (namespace, last) in
            places.into_iter().chain([(first, 101), (second, 102), (third, 103)])
        {
            use_ipv6(namespace)?;
            let address = format!("{}/{}", IPV6.address(last), IPV6.bits);
            namespace.ip(&["addr", "add", &address, "dev", "eth0", "nodad"])?;
        }
        // As Keepalived does it: the host sends nothing from there by itself.
        let vip = format!("{}/128", IPV6.address(VIP));
        let lifetime = ["preferred_lft", "0", "nodad"];
        bed.balancer.ip(&[&["addr", "add", &vip, "dev", "eth0"], &lifetime[..]].concat())?;
        for family in [&IPV4, &IPV6] {
            let [client, balancer, vip] = [CLIENT, BALANCER, VIP].map(|last| family.address(last));
            // By "nat" the replies must pass through the balancer.
            first.ip(&["route", "add", &client, "via", &balancer])?;
            for host in [second, third] {
                host.ip(&["addr", "add", &vip, "dev", "lo"])?;
            }
            // Room for the outer headers.
            bed.client.ip(&["route", "add", &vip, "dev", "eth0", "mtu", "1400"])?;
        }
        for host in [second, third] {
            for setting in ["arp_ignore=1", "arp_announce=2"] {
                host.run("sysctl", &["-qw", &format!("net.ipv4.conf.all.{setting}")])?;
            }
        }
        // Merged segments have no checksums of their own, and a program can't finish them.
        third.run("ethtool", &["-K", "eth0", "gro", "off"])?;
        Ok(())
    }

    fn start_servers(&mut self) -> Result<()> {
        for host in 1..=3 {
            let of_host = || MODES.iter().filter(|mode| mode.host == host);
            let namespace = self.bed.backend_namespace(&format!("mgmt{host:02}"))?;
            let mut listen: Vec<String> = Vec::new();
            let mut answer = Vec::new();
            for mode in of_host() {
                listen.push(format!("0.0.0.0:{}", mode.backend_port));
                listen.push(format!("[::]:{}", mode.backend_port));
                // What comes to the VIP is answered from there.
                let last = if mode.translates() { 100 + host } else { VIP };
                answer.push(mode.outside.socket(last, mode.backend_port));
            }
            listen.retain(|address| !address.ends_with(":8080"));
            listen.push(IPV6.socket(100 + host, 8080));
            listen.sort();
            listen.dedup();
            let listen: Vec<&str> = listen.iter().map(String::as_str).collect();
            let name = format!("server{host}");
            self.bed.start_nginx(namespace, &name, &listen)?;
            let mut responder = namespace.command(RESPONDER);
            let helper = ready(responder.arg(name).args(answer))?;
            self.helpers.push(helper);
        }
        let mut decapsulator = self.bed.backend_namespace("mgmt03")?.command(DECAPSULATOR);
        self.helpers.push(ready(&mut decapsulator)?);
        Ok(())
    }

    fn wait_for_backends(&self) -> Result<()> {
        let up = || {
            let services = self.bed.json(&["list", "services", "--json"])?;
            let services = services.as_array().context("an array")?;
            Ok(services.len() == 2 * MODES.len()
                && services.iter().all(|service| service["backends_up"] == 1))
        };
        wait_until("backends are up", up)
            .with_context(|| fs::read_to_string(self.bed.log()).unwrap_or_default())
    }

    fn curl(&self, mode: &Mode, page: &str, more: &[&str]) -> Result<String> {
        let url = format!("http://{}{page}", mode.outside.socket(VIP, mode.port));
        let answer = self.bed.client.run("curl", &[&["-gsSf", "-m", "60", &url], more].concat());
        answer.with_context(|| mode.name())
    }
}

impl Drop for Modes {
    fn drop(&mut self) {
        for helper in &mut self.helpers {
            // It may have ended already.
            let _: std::io::Result<()> = helper.kill();
            let _: std::io::Result<std::process::ExitStatus> = helper.wait();
        }
    }
}

fn use_ipv6(namespace: &Namespace) -> Result<()> {
    for scope in ["all", "default"] {
        let key = format!("net.ipv6.conf.{scope}.disable_ipv6=0");
        namespace.run("sysctl", &["-qw", &key])?;
    }
    Ok(())
}

/// A service's part of the configuration.
fn service(mode: &Mode, protocol: &str) -> String {
    let name = format!("{}-{protocol}", mode.name());
    let check = if protocol == "tcp" { "[service.check]\ninterval = \"200ms\"\n" } else { "" };
    format!(
        "[[service]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\nbind = [\"{}\"]\nforwarding = \
         \"{}\"\n{check}[[service.backend]]\nname = \"only\"\naddress = \"{}\"\n",
        mode.outside.socket(VIP, mode.port),
        mode.forwarding,
        mode.backend()
    )
}

/// Starts a helper, and waits until it says that it is ready.
fn ready(command: &mut std::process::Command) -> Result<Child> {
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
            let what = format!("{xdp_mode}, {}", mode.name());
            let said = modes.curl(mode, "/peer", &["-w", "\n%{local_ip} %{local_port}"])?;
            let (seen, own) = said.split_once('\n').context("two addresses")?;
            if mode.forwarding == "full-nat" {
                let balancer = format!("{} ", mode.inside.address(BALANCER));
                ensure!(seen.starts_with(&balancer), "{what}: {said}");
            } else {
                ensure!(seen == own, "{what}: {said}");
            }
            modes.curl(mode, "/big", &["-o", got.to_str().context("UTF-8")?])?;
            ensure!(sha256(&got)? == wanted, "{what}: download");
            modes.curl(mode, "/upload/big", &["-T", big.to_str().context("UTF-8")?])?;
            let upload = modes.bed.backend_file(&server(mode), "upload/big");
            ensure!(sha256(&upload)? == wanted, "{what}: upload");
            fs::remove_file(upload)?;
        }
        for reason in ["needs_fragmentation", "no_headroom", "no_egress", "tables_incomplete"] {
            ensure!(modes.bed.reason(reason)? == 0, "{xdp_mode}: {reason}");
        }
    }
    Ok(())
}

/// The web server that stands for a mode's backend.
fn server(mode: &Mode) -> String {
    let is_beds_own = mode.backend_port == 8080 && mode.inside.bits == IPV4.bits;
    if is_beds_own { mode.host_name() } else { format!("server{}", mode.host) }
}

#[test]
fn datagrams_are_answered_and_backends_see_who_asks() -> Result<()> {
    const LONGEST: usize = 1300;
    for xdp_mode in ["native", "generic"] {
        let modes = Modes::new(xdp_mode)?;
        for mode in &MODES {
            let what = format!("{xdp_mode}, {}", mode.name());
            let vip = mode.outside.socket(VIP, mode.port);
            for length in [0, 1, LONGEST] {
                let question = "x".repeat(length);
                let (own, answer) = ask(&modes.bed.client, &vip, &question, 3)
                    .with_context(|| format!("{what}, {length} bytes"))?;
                let mut words = answer.split(' ');
                ensure!(words.next() == Some(&format!("server{}", mode.host)), "{what}: {answer}");
                let peer = words.next().context("who asked")?;
                if mode.forwarding == "full-nat" {
                    ensure!(peer.contains(&mode.inside.address(BALANCER)), "{what}: {answer}");
                } else {
                    ensure!(peer == own.to_string(), "{what}: {answer}, asked from {own}");
                }
                ensure!(words.next() == Some(&question), "{what}: {answer}");
            }
            let flows = modes.bed.json(&[
                "list",
                "flows",
                "--json",
                "--state",
                "udp",
                "--service",
                &format!("{}-udp", mode.name()),
            ])?;
            ensure!(flows.as_array().is_some_and(|flows| flows.len() == 3), "{what}: {flows}");
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
            let file = modes.bed.backend_file("mgmt01", &format!("{}.pcap", mode.name()));
            let capture = Capture::start(modes.bed.backend_namespace(&mode.host_name())?, &file)?;
            let said = modes.curl(mode, "/peer", &[])?;
            let (source, source_port) = said.split_once(' ').context("an address and a port")?;
            let ports = format!("{source_port}>{}", mode.backend_port);
            let requests = || -> Result<Vec<Decoded>> {
                let is_request = |frame: &Decoded| frame.tcp_ports == ports;
                Ok(capture.decoded()?.into_iter().filter(is_request).collect())
            };
            wait_until("the connection's end is captured", || {
                Ok(requests()?.iter().any(|frame| frame.flags & FIN != 0))
            })?;
            let expected = headers(mode, source);
            for frame in requests()? {
                ensure!(
                    [&frame.ipv4, &frame.ipv6] == [&expected[0], &expected[1]],
                    "{xdp_mode}: {frame:?}"
                );
                ensure!(frame.protocols.starts_with(mode.protocols), "{xdp_mode}: {frame:?}");
            }
        }
    }
    Ok(())
}

/// What the IPv4 and the IPv6 headers of a frame to the backend must say.
fn headers(mode: &Mode, source: &str) -> [Network; 2] {
    let own = mode.inside.address(100 + mode.host);
    let receiver = if mode.translates() { own.clone() } else { mode.outside.address(VIP) };
    let inner = mode.outside.network(source, &receiver, "63");
    if !mode.encapsulates() {
        return inner;
    }
    let outer = mode.inside.network(&mode.inside.address(BALANCER), &own, "64");
    let joined = |outer: &str, inner: &str| {
        let parts = [outer, inner].into_iter().filter(|part| !part.is_empty());
        parts.collect::<Vec<&str>>().join(",")
    };
    [0, 1].map(|family| Network {
        sources: joined(&outer[family].sources, &inner[family].sources),
        destinations: joined(&outer[family].destinations, &inner[family].destinations),
        hops: joined(&outer[family].hops, &inner[family].hops),
    })
}
