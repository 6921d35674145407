//! Every way of forwarding at once in one balancer, over both address families.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Stdio},
};

use anyhow::{Context, Result, ensure};
use xtask::netns::Namespace;

use crate::{bed::Bed, capture::Network, client::sha256, wait::wait_until};

/// Paths of the programs that take part.
#[derive(Clone, Copy, Debug)]
pub struct Programs {
    /// The program under test.
    pub lb: &'static str,
    /// Takes outer headers off.
    pub decapsulator: &'static str,
    /// Answers datagrams.
    pub responder: &'static str,
}

/// Addresses of one family.
pub struct Family {
    /// The word for it.
    pub name: &'static str,
    /// What the last number of an address is put behind.
    prefix: &'static str,
    /// Length of the prefix.
    pub bits: u8,
}

/// The hosts' addresses of IPv4.
pub const IPV4: Family = Family { name: "ipv4", prefix: "10.91.0.", bits: 24 };
/// The hosts' addresses of IPv6.
pub const IPV6: Family = Family { name: "ipv6", prefix: "fd00:91::", bits: 64 };

impl Family {
    /// An address.
    pub fn address(&self, last: u8) -> String {
        format!("{}{last}", self.prefix)
    }

    /// An address and port as they are written.
    pub fn socket(&self, last: u8, port: u16) -> String {
        let address = self.address(last);
        if self.bits == 64 { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
    }

    /// What the IPv4 and the IPv6 headers of a frame say that has one header of this family.
    pub fn network(&self, sources: &str, destinations: &str, hops: &str) -> [Network; 2] {
        let [sources, destinations, hops] = [sources, destinations, hops].map(str::to_owned);
        let own = Network { sources, destinations, hops };
        if self.bits == 64 { [Network::default(), own] } else { [own, Network::default()] }
    }
}

/// Last number of the service's address.
pub const VIP: u8 = 100;
/// Last number of the client's.
pub const CLIENT: u8 = 1;
/// Last number of the balancer's own.
pub const BALANCER: u8 = 10;

/// A service and its only backend, for TCP and for UDP.
pub struct Mode {
    /// As in the configuration.
    pub forwarding: &'static str,
    /// Of what clients send to.
    pub outside: &'static Family,
    /// Of the backend.
    pub inside: &'static Family,
    /// The service's port.
    pub port: u16,
    /// The number of the host that the backend is on.
    pub host: u8,
    /// The backend's port.
    pub backend_port: u16,
    /// Protocols in a frame to the backend, as tshark names them: behind UDP, its decoder of IPv4 looks
    /// first and hands IPv6 on.
    pub protocols: &'static str,
}

impl Mode {
    /// A service.
    pub const fn new(
        forwarding: &'static str,
        [outside, inside]: [&'static Family; 2],
        ports: [u16; 2],
        host: u8,
        protocols: &'static str,
    ) -> Self {
        let [port, backend_port] = ports;
        Self { forwarding, outside, inside, port, host, backend_port, protocols }
    }

    /// Its name in the configuration, less the protocol.
    pub fn name(&self) -> String {
        format!("{}-{}-in-{}", self.forwarding, self.outside.name, self.inside.name)
    }

    /// Whether datagrams travel within an outer header.
    pub fn encapsulates(&self) -> bool {
        ["ipip", "gue"].contains(&self.forwarding)
    }

    /// Whether the receiver is changed.
    pub fn translates(&self) -> bool {
        ["nat", "full-nat"].contains(&self.forwarding)
    }

    /// Name of the host that the backend is on.
    pub fn host_name(&self) -> String {
        format!("mgmt{:02}", self.host)
    }

    /// The backend's own address and port.
    fn backend(&self) -> String {
        self.inside.socket(100 + self.host, self.backend_port)
    }
}

/// Every way of forwarding, from and to every family that it can.
pub const MODES: [Mode; 14] = [
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
pub struct Modes {
    /// The network.
    pub bed: Bed,
    programs: Programs,
    /// Programs that end with it.
    pub helpers: Vec<Child>,
}

impl Modes {
    /// One that runs, all of whose backends are up.
    ///
    /// # Errors
    ///
    /// The user may not make it, or something doesn't start.
    pub fn new(programs: Programs, xdp_mode: &'static str) -> Result<Self> {
        let bed = Bed::without_controller(programs.lb, xdp_mode, 3)?;
        let mut modes = Self { bed, programs, helpers: Vec::new() };
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
        modes.wait_for_backends(2 * MODES.len())?;
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
            let mut responder = namespace.command(self.programs.responder);
            let helper = ready(responder.arg(name).args(answer))?;
            self.helpers.push(helper);
        }
        let mut decapsulator =
            self.bed.backend_namespace("mgmt03")?.command(self.programs.decapsulator);
        self.helpers.push(ready(&mut decapsulator)?);
        Ok(())
    }

    /// Waits until so many services have a backend that is up.
    ///
    /// # Errors
    ///
    /// They don't get there.
    pub fn wait_for_backends(&self, count: usize) -> Result<()> {
        let up = || {
            let services = self.bed.json(&["list", "services", "--json"])?;
            let services = services.as_array().context("an array")?;
            Ok(services.len() == count
                && services.iter().all(|service| service["backends_up"] == 1))
        };
        wait_until("backends are up", up)
            .with_context(|| fs::read_to_string(self.bed.log()).unwrap_or_default())
    }

    /// Asks a service for a page, from the client.
    ///
    /// # Errors
    ///
    /// It isn't got.
    pub fn curl(&self, mode: &Mode, page: &str, more: &[&str]) -> Result<String> {
        self.curl_from(&self.bed.client, mode, page, more)
    }

    /// The same from anywhere.
    ///
    /// # Errors
    ///
    /// It isn't got.
    pub fn curl_from(
        &self,
        client: &Namespace,
        mode: &Mode,
        page: &str,
        more: &[&str],
    ) -> Result<String> {
        let url = format!("http://{}{page}", mode.outside.socket(VIP, mode.port));
        let answer = client.run("curl", &[&["-gsSf", "-m", "60", &url], more].concat());
        answer.with_context(|| mode.name())
    }

    /// Makes a file of so many megabytes that the web servers have as `/big`.
    ///
    /// # Errors
    ///
    /// It can't be written.
    pub fn make_big(&self, megabytes: usize) -> Result<Big> {
        let path = self.bed.backend_file("mgmt01", "../big");
        let mut bytes = vec![0; megabytes << 20];
        fastrand::Rng::with_seed(2).fill(&mut bytes);
        fs::write(&path, bytes)?;
        Ok(Big { sum: sha256(&path)?, path })
    }

    /// Loads the file down, and demands that it is whole.
    ///
    /// # Errors
    ///
    /// It isn't.
    pub fn download(&self, client: &Namespace, mode: &Mode, big: &Big) -> Result<()> {
        let got = self.bed.backend_file("mgmt01", "../got");
        self.curl_from(client, mode, "/big", &["-o", got.to_str().context("UTF-8")?])?;
        ensure!(sha256(&got)? == big.sum, "{}: download", mode.name());
        Ok(())
    }

    /// Loads the file up to a web server, and demands that it is whole.
    ///
    /// # Errors
    ///
    /// It isn't.
    pub fn upload(&self, client: &Namespace, mode: &Mode, server: &str, big: &Big) -> Result<()> {
        let path = big.path.to_str().context("UTF-8")?;
        self.curl_from(client, mode, "/upload/big", &["-T", path])?;
        let kept = self.bed.backend_file(server, "upload/big");
        ensure!(sha256(&kept)? == big.sum, "{}: upload", mode.name());
        Ok(fs::remove_file(kept)?)
    }
}

/// A large file.
pub struct Big {
    path: PathBuf,
    /// Its SHA-256.
    sum: String,
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

/// Lets a namespace have IPv6.
///
/// # Errors
///
/// The user may not.
pub fn use_ipv6(namespace: &Namespace) -> Result<()> {
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
///
/// # Errors
///
/// It doesn't start.
pub fn ready(command: &mut std::process::Command) -> Result<Child> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let said = child.stdout.take().context("its output")?;
    let line = BufReader::new(said).lines().next().context("it ended")??;
    ensure!(line == "ready", "{line}");
    Ok(child)
}

/// The web server that stands for a mode's backend.
pub fn server(mode: &Mode) -> String {
    let is_beds_own = mode.backend_port == 8080 && mode.inside.bits == IPV4.bits;
    if is_beds_own { mode.host_name() } else { format!("server{}", mode.host) }
}
