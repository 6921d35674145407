//! What is thought of backends, by what firewalls say of them, by silence that clients may have brought about, and where
//! nothing can be forwarded to them; and that it is told when a service has none left.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    ops::ControlFlow,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lb_tests::{
    bed::{Bed, SERVICE},
    client::{self, within},
    frame::Segment,
    wait::wait_until,
};
use lb_userspace::netlink::FrameSender;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");

/// Has a backend's host treat what comes to its port in another way.
fn filter(bed: &Bed, backend: &str, verdict: &str) -> Result<()> {
    let rules = format!(
        "table inet t {{ chain c {{ type filter hook input priority 0; tcp dport 8080 {verdict}; }}; }}"
    );
    bed.on_backend(backend, "nft", &[&rules]).map(drop)
}

/// As before.
fn unfilter(bed: &Bed, backend: &str) -> Result<()> {
    bed.on_backend(backend, "nft", &["delete table inet t"]).map(drop)
}

#[test]
fn what_a_firewall_says_is_said_of_the_backend() -> Result<()> {
    let bed = Bed::new(LB, "native", 2)?;
    // Each check is to be told so, also where there are many within a second.
    bed.on_backend("mgmt01", "sysctl", &["-qw", "net.ipv4.icmp_ratelimit=0"])?;
    for (kind, told) in [
        ("net-unreachable", "network unreachable"),
        ("host-unreachable", "host unreachable"),
        ("prot-unreachable", "Protocol not available"),
        ("admin-prohibited", "host unreachable"),
    ] {
        filter(&bed, "mgmt01", &format!("reject with icmp type {kind}"))?;
        bed.wait_for_state("mgmt01", "down")?;
        let shown = bed.shown("mgmt01")?;
        let detail = shown["check"]["detail"].as_str().unwrap_or_default();
        ensure!(detail.starts_with(told), "{kind}: {shown}");
        ensure!(bed.request()? == "mgmt02");
        unfilter(&bed, "mgmt01")?;
        bed.wait_for_up(2)?;
    }
    Ok(())
}

#[test]
fn a_backend_that_nothing_can_be_forwarded_to_takes_nothing() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 1)?;
    let address = bed.backend_address("mgmt01")?.to_owned();
    let backends = format!(
        "[[service.backend]]\nname = \"app\"\naddress = \"{address}:8080\"\n\
         [[service.backend]]\nname = \"here\"\naddress = \"10.91.0.10:8080\"\n"
    );
    bed.write_config_of(&format!(
        "[[service]]\nname = \"checked\"\nbind = [\"10.91.0.100:8080\"]\n\
         [service.check]\ntype = \"tcp\"\nport = 22\ninterval = \"200ms\"\nagent_port = 9\n{backends}\
         [[service]]\nname = \"unchecked\"\nbind = [\"10.91.0.100:8081\"]\n[service.check]\ntype = \"none\"\n\
         {}",
        backends.replace("\"app\"", "\"other\"").replace("\"here\"", "\"there\""),
    ))?;
    // Whatever listens there would pass.
    let listen = || std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 22));
    let _here = within(&bed.balancer, listen)?;
    let there = within(bed.backend_namespace("mgmt01")?, listen)?;
    bed.start_controller(&[])?;
    bed.wait_for_state("app", "up")?;
    for name in ["here", "there"] {
        bed.wait_for_state(name, "down")?;
        let shown = bed.shown(name)?;
        let told = "not reachable: the address is this host's own";
        ensure!(shown["check"]["detail"] == told && shown["share"] == 0.0, "{shown}");
    }
    for _ in 0..10 {
        ensure!(bed.request()? == "mgmt01");
    }
    bed.wait_for_event(
        "checked/app: nothing from its agent, and what it said last holds: connection refused",
    )?;

    // The last one goes.
    drop(there);
    bed.wait_for_event("service checked has no backend: new connections are refused")?;
    let _there = within(bed.backend_namespace("mgmt01")?, listen)?;
    bed.wait_for_event("over: service checked has no backend")?;
    ensure!(bed.request()? == "mgmt01");
    Ok(())
}

#[test]
fn silence_takes_a_backend_out_only_if_its_check_agrees() -> Result<()> {
    /// SYNs of a stranger, each sent twice.
    const SYNS: u16 = 60;
    let mut bed = Bed::without_controller(LB, "native", 3)?;
    bed.write_config("")?;
    let text = fs::read_to_string(bed.config())?;
    let observed = "interval = \"1h\"\nobserve = \"connect\"\nobserve_failures = 2";
    fs::write(bed.config(), text.replace("interval = \"200ms\"", observed))?;
    bed.start_controller(&[])?;
    bed.wait_for_up(3)?;
    let mut held = client::held(&bed, 9)?;

    // What isn't worth an answer: its checksum is wrong.
    let (index, own) = client::interface(&bed.client)?;
    let (_, balancer) = client::interface(&bed.balancer)?;
    let frames = move |round: u16| {
        (0..SYNS).map(move |number| {
            let source = (Ipv4Addr::new(10, 91, 0, 1).into(), 2000 + round * SYNS + number);
            let vip: IpAddr = Ipv4Addr::new(10, 91, 0, 100).into();
            let mut segment = Segment::syn(source, (vip, 8080));
            (segment.source_mac, segment.destination_mac) = (own, balancer);
            segment.transport_checksum_error = 1;
            segment.build()
        })
    };
    for round in 0..4 {
        within(&bed.client, move || {
            let sender = FrameSender::new()?;
            for _ in 0..2 {
                for frame in frames(round) {
                    sender.send(index, &frame)?;
                }
                // Until that counts as sent again.
                thread::sleep(Duration::from_millis(300));
            }
            Ok(())
        })?;
    }
    for (name, connection) in &mut held {
        ensure!(connection.request()? == *name, "it moved");
    }
    ensure!(bed.json(&["list", "services", "--json"])?[0]["backends_up"] == 3, "one is out");

    // One that really says nothing.
    let vip: SocketAddr = SERVICE.parse()?;
    filter(&bed, "mgmt03", "drop")?;
    wait_until("it is out", || {
        client::at_pace(&bed.client, 8, Duration::from_millis(20), move |number| {
            // Long enough for a SYN to be sent again; whatever comes of it.
            let _: std::io::Result<TcpStream> =
                TcpStream::connect_timeout(&vip, Duration::from_millis(1500));
            if number < 16 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(bed.shown("mgmt03")?["state"] == "down")
    })?;
    ensure!(bed.shown("mgmt03")?["check"]["detail"] == "timeout after 1s connecting");
    ensure!(bed.json(&["list", "services", "--json"])?[0]["backends_up"] == 2);
    Ok(())
}

#[test]
fn one_that_comes_back_from_maintenance_warms_up() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 3)?;
    bed.write_config("")?;
    let text = fs::read_to_string(bed.config())?;
    fs::write(bed.config(), text.replace("bind = ", "slow_start = \"10s\"\nbind = "))?;
    bed.start_controller(&[])?;
    bed.wait_for_up(3)?;
    ensure!(bed.shown("mgmt02")?["share"].as_f64().context("share")? > 0.3, "from the start");
    bed.lb_ok(&["maint", "ui/mgmt02"])?;
    bed.wait_for_state("mgmt02", "maint")?;
    bed.lb_ok(&["ready", "ui/mgmt02"])?;
    bed.wait_for_state("mgmt02", "up")?;
    let share = |bed: &Bed| bed.shown("mgmt02")?["share"].as_f64().context("share");
    let first = share(&bed)?;
    ensure!(first < 0.2, "{first} at once");
    wait_until("it has more", || Ok(share(&bed)? > first))
}
