//! Frames as they arrive at a host, read by an independent decoder.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use xtask::netns::Namespace;

/// `tcpdump` under way.
pub struct Capture {
    child: Child,
    file: PathBuf,
}

/// A frame, as tshark reads it. What stands in it several times, outer headers first, is separated
/// by commas.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// Names of its protocols, from the link on, separated by colons.
    pub protocols: String,
    /// What its IPv4 headers say.
    pub ipv4: Network,
    /// What its IPv6 headers say.
    pub ipv6: Network,
    /// UDP's ports: sender's, `>`, receiver's.
    pub udp_ports: String,
    /// TCP's ports, likewise.
    pub tcp_ports: String,
    /// TCP's flags as a number.
    pub flags: u16,
}

/// What network headers of one family say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Senders.
    pub sources: String,
    /// Receivers.
    pub destinations: String,
    /// Hops left.
    pub hops: String,
}

/// What tshark is asked for, in the order of [`Decoded`], with the states of checksums at the end.
const FIELDS: [&str; 18] = [
    "frame.protocols",
    "ip.src",
    "ip.dst",
    "ip.ttl",
    "ipv6.src",
    "ipv6.dst",
    "ipv6.hlim",
    "tcp.srcport",
    "tcp.dstport",
    "udp.srcport",
    "udp.dstport",
    "tcp.flags",
    "tcp.checksum",
    "tcp.checksum_calculated",
    "ip.checksum.status",
    "tcp.checksum.status",
    "udp.checksum.status",
    "_ws.malformed",
];

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/tshark.lua");

/// Both are zero (RFC 1624, section 3). Linux sends TCP's as it must send UDP's, by the first one
/// (`skb_checksum_help` in net/core/dev.c), which tshark takes for wrong.
const ZEROS: [&str; 2] = ["0xffff", "0x0000"];

/// tshark's word for a checksum that is wrong.
const BAD_CHECKSUM: &str = "0";

impl Capture {
    /// Starts to write the IP datagrams that cross a host's `eth0` to a file.
    ///
    /// # Errors
    ///
    /// It can't be started.
    pub fn start(namespace: &Namespace, file: &Path) -> Result<Self> {
        let mut command = namespace.command("tcpdump");
        command
            .args(["-n", "-U", "--immediate-mode", "-i", "eth0", "-w"])
            .arg(file)
            .arg("ip or ip6");
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let said = child.stderr.take().context("its standard error")?;
        let capture = Self { child, file: file.to_owned() };
        let listens =
            |line: std::io::Result<String>| line.is_ok_and(|line| line.contains("listening on"));
        ensure!(BufReader::new(said).lines().any(listens), "tcpdump ended");
        Ok(capture)
    }

    /// What was captured so far, in order. Demands that every checksum is right.
    ///
    /// # Errors
    ///
    /// One isn't, a frame is malformed, or the file can't be decoded.
    pub fn decoded(&self) -> Result<Vec<Decoded>> {
        let mut command = Command::new("tshark");
        command.args(["-n", "-X", &format!("lua_script:{SCRIPT}"), "-r"]).arg(&self.file);
        command.args(["-T", "fields", "-E", "separator=|"]);
        for protocol in ["ip", "tcp", "udp"] {
            command.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
        }
        for field in FIELDS {
            command.args(["-e", field]);
        }
        let output = command.output().context("starting tshark")?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        text.lines().map(decode).collect()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // It may have ended already.
        let _: std::io::Result<()> = self.child.kill();
        let _: std::io::Result<std::process::ExitStatus> = self.child.wait();
    }
}

fn decode(line: &str) -> Result<Decoded> {
    let fields: Vec<&str> = line.split('|').collect();
    let fields: [&str; FIELDS.len()] =
        fields.try_into().map_err(|_| anyhow::anyhow!("not what was asked for: {line}"))?;
    let [protocols, source, destination, hops, rest @ ..] = fields;
    let ipv4 = network(source, destination, hops);
    let [source, destination, hops, rest @ ..] = rest;
    let ipv6 = network(source, destination, hops);
    let [tcp_source, tcp_destination, udp_source, udp_destination, rest @ ..] = rest;
    let [flags, checksum, calculated, ip_states, tcp_states, udp_states, malformed] = rest;
    ensure!(malformed.is_empty(), "malformed: {line}");
    let tcp_states = if [checksum, calculated] == ZEROS { "" } else { tcp_states };
    let states = [ip_states, tcp_states, udp_states].into_iter();
    let mut states = states.flat_map(|states| states.split(','));
    ensure!(states.all(|state| state != BAD_CHECKSUM), "a wrong checksum: {line}");
    let flags = flags.trim_start_matches("0x");
    Ok(Decoded {
        protocols: protocols.to_owned(),
        ipv4,
        ipv6,
        udp_ports: format!("{udp_source}>{udp_destination}"),
        tcp_ports: format!("{tcp_source}>{tcp_destination}"),
        flags: if flags.is_empty() { 0 } else { u16::from_str_radix(flags, 16)? },
    })
}

fn network(source: &str, destination: &str, hops: &str) -> Network {
    Network {
        sources: source.to_owned(),
        destinations: destination.to_owned(),
        hops: hops.to_owned(),
    }
}
