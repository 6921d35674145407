//! Every way of forwarding at once in one balancer, over both address families, end to end, in native
//! and in generic mode: what the backend's socket reports, large files both ways, and what an
//! independent decoder sees.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use lb_tests::{
    capture::{Capture, Decoded, Network},
    client::ask,
    modes::{BALANCER, MODES, Mode, Modes, Programs, VIP, server},
    wait::wait_until,
};

const PROGRAMS: Programs = Programs {
    lb: env!("CARGO_BIN_EXE_lb-under-test"),
    decapsulator: env!("CARGO_BIN_EXE_decapsulator"),
    responder: env!("CARGO_BIN_EXE_responder"),
};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn backends_see_the_client_and_large_files_arrive_whole() -> Result<()> {
    const MEGABYTES: usize = 100;
    for xdp_mode in ["native", "generic"] {
        let modes = Modes::new(PROGRAMS, xdp_mode)?;
        let big = modes.make_big(MEGABYTES)?;
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
            modes.download(&modes.bed.client, mode, &big).context(xdp_mode)?;
            modes.upload(&modes.bed.client, mode, &server(mode), &big).context(xdp_mode)?;
        }
        for reason in ["no_headroom", "no_egress", "tables_incomplete"] {
            ensure!(modes.bed.reason(reason)? == 0, "{xdp_mode}: {reason}");
        }
        // Outer headers leave less room than clients know of at first.
        ensure!(modes.bed.reason("needs_fragmentation")? > 0, "{xdp_mode}");
    }
    Ok(())
}

#[test]
fn datagrams_are_answered_and_backends_see_who_asks() -> Result<()> {
    const LONGEST: usize = 1300;
    for xdp_mode in ["native", "generic"] {
        let modes = Modes::new(PROGRAMS, xdp_mode)?;
        for mode in &MODES {
            let what = format!("{xdp_mode}, {}", mode.name());
            let vip = mode.outside.socket(VIP, mode.port);
            for length in [0, 1, LONGEST] {
                let question = "x".repeat(length);
                let (own, answer) = ask(&modes.bed.client, &vip, &question, 3, PATIENCE)
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
fn fragmented_datagrams_arrive_whole_in_both_directions() -> Result<()> {
    for xdp_mode in ["native", "generic"] {
        let modes = Modes::new(PROGRAMS, xdp_mode)?;
        for mode in &MODES {
            let what = format!("{xdp_mode}, {}", mode.name());
            let vip = mode.outside.socket(VIP, mode.port);
            let asked =
                |question: &str, patience| ask(&modes.bed.client, &vip, question, 3, patience);
            if mode.encapsulates() {
                // The first parts of the first ones teach the client how long parts may be.
                let question = "x".repeat(2000);
                wait_until("the client has learnt how long fragments may be", || {
                    Ok(asked(&question, Duration::from_millis(200)).is_ok())
                })
                .with_context(|| what.clone())?;
            }
            for length in [1473, 4000, 20_000] {
                let question: String =
                    (0..length).map(|byte| char::from(b'a' + (byte % 26) as u8)).collect();
                let (_, answer) = asked(&question, PATIENCE)
                    .with_context(|| format!("{what}, {length} bytes"))?;
                ensure!(answer.ends_with(&format!(" {question}")), "{what}: {answer}");
            }
        }
        ensure!(modes.bed.reason("fragment")? > 0, "{xdp_mode}: there were none");
    }
    Ok(())
}

#[test]
fn a_backend_receives_exactly_the_headers_that_the_mode_promises() -> Result<()> {
    const FIN: u16 = 0x001;
    for xdp_mode in ["native", "generic"] {
        let modes = Modes::new(PROGRAMS, xdp_mode)?;
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

            let vip = mode.outside.socket(VIP, mode.port);
            let (_, answer) = ask(&modes.bed.client, &vip, "what", 1, PATIENCE)?;
            let peer: SocketAddr = answer.split(' ').nth(1).context("who asked")?.parse()?;
            // Behind the ports of Generic UDP Encapsulation, if there is one.
            let is_question = |frame: &Decoded| {
                let (from, to) = frame.udp_ports.split_once('>').unwrap_or_default();
                let last = |ports: &str| ports.rsplit(',').next().map(str::to_owned);
                last(from) == Some(peer.port().to_string())
                    && last(to) == Some(mode.backend_port.to_string())
            };
            let frames = capture.decoded()?;
            let frame = frames.iter().find(|frame| is_question(frame)).context("the question")?;
            let expected = headers(mode, &peer.ip().to_string());
            ensure!(
                [&frame.ipv4, &frame.ipv6] == [&expected[0], &expected[1]],
                "{xdp_mode}: {frame:?}"
            );
            let protocols = mode.protocols.replace(":tcp", ":udp");
            ensure!(frame.protocols.starts_with(&protocols), "{xdp_mode}: {frame:?}");
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
