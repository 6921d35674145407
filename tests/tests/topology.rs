//! Other networks than a single switch: backends behind another interface, clients behind a
//! router, interfaces that take no native program, hardware addresses that change.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_tests::{bed::Bed, client::Connection, wait::wait_until};
use nix::sys::signal::Signal;
use xtask::netns::{Namespace, Port, Switch};

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");

/// Cables another switch to the balancer's `eth1`, with a backend behind it.
struct SecondNetwork {
    _switch: Switch,
    backend: Namespace,
}

impl SecondNetwork {
    fn new(bed: &Bed) -> Result<Self> {
        let prefix = bed.client.name().replace("-client", "");
        let switch = Switch::create(&format!("{prefix}-switch2"))?;
        let backend = Namespace::create(&format!("{prefix}-far"))?;
        let connect = |namespace, interface, port, address: &str| {
            let addresses = [address.to_owned()];
            let namespace = Some(namespace);
            switch.connect(Port { namespace, interface, port, addresses: &addresses, mtu: 1500 })
        };
        connect(&bed.balancer, "eth1", "lb", "10.92.0.10/24")?;
        connect(&backend, "eth0", "far", "10.92.0.101/24")?;
        bed.start_nginx(&backend, "far", &["10.92.0.101:8080"])?;
        Ok(Self { _switch: switch, backend })
    }
}

#[test]
fn a_backend_behind_another_interface_is_reached_by_it() -> Result<()> {
    for mode in ["native", "generic"] {
        let mut bed = Bed::without_controller(LB, mode, 1)?;
        let network = SecondNetwork::new(&bed)?;
        bed.balancer.run("ethtool", &["-K", "eth1", "gro", "off"])?;
        bed.write_config("[[service.backend]]\nname = \"far\"\naddress = \"10.92.0.101:8080\"\n")?;
        bed.start_controller(&["--interface", "eth0", "--interface", "eth1"])?;
        bed.wait_for_up(2)?;
        bed.lb_ok(&["drain", "ui/mgmt01"])?;
        for _ in 0..20 {
            ensure!(bed.request()? == "far", "{mode}");
        }
        let flows = bed.json(&["list", "flows", "--json"])?;
        let nat = flows[0]["nat"].as_str().unwrap_or_default();
        ensure!(nat.starts_with("10.92.0.10:"), "the source is that of the way there: {flows}");
        drop(network);
    }
    Ok(())
}

#[test]
fn a_backend_whose_interface_has_no_program_is_warned_of() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 1)?;
    let _network = SecondNetwork::new(&bed)?;
    bed.write_config("[[service.backend]]\nname = \"far\"\naddress = \"10.92.0.101:8080\"\n")?;
    bed.start_controller(&[])?;
    wait_until("the warning", || {
        let log = std::fs::read_to_string(bed.log())?;
        Ok(log.contains("reached by eth1, which isn't among interfaces"))
    })
}

#[test]
fn clients_and_backends_behind_routers_are_reached() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 0)?;
    let network = SecondNetwork::new(&bed)?;
    // The client becomes a router's neighbour: its own address is known by a route only.
    bed.client.ip(&["addr", "add", "198.51.100.7/32", "dev", "lo"])?;
    bed.client.ip(&["route", "add", "10.91.0.100", "dev", "eth0", "src", "198.51.100.7"])?;
    bed.balancer.ip(&["route", "add", "198.51.100.0/24", "via", "10.91.0.1"])?;
    // And the backend's address lies behind its host.
    network.backend.ip(&["addr", "add", "203.0.113.5/32", "dev", "lo"])?;
    bed.start_nginx(&network.backend, "deep", &["203.0.113.5:8081"])?;
    bed.balancer.ip(&["route", "add", "203.0.113.0/24", "via", "10.92.0.101"])?;
    bed.write_config("[[service.backend]]\nname = \"deep\"\naddress = \"203.0.113.5:8081\"\n")?;
    bed.start_controller(&["--interface", "eth0", "--interface", "eth1"])?;
    bed.wait_for_up(1)?;
    for _ in 0..10 {
        ensure!(bed.request()? == "deep");
    }
    let flows = bed.json(&["list", "flows", "--json"])?;
    let client = flows[0]["client"].as_str().unwrap_or_default();
    ensure!(client.starts_with("198.51.100.7:"), "{flows}");
    Ok(())
}

#[test]
fn auto_falls_back_to_generic_and_says_why() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "auto", 1)?;
    // More than a page: a native program on the other end of the cable couldn't take it.
    bed.switch.namespace().ip(&["link", "set", "lb", "mtu", "9000"])?;
    // A cable whose other end sends by more queues than this one receives by.
    let near = ["link", "add", "eth1", "numrxqueues", "1", "numtxqueues", "1", "type", "veth"];
    let far = ["peer", "name", "eth2", "numrxqueues", "4", "numtxqueues", "4"];
    bed.balancer.ip(&[&near[..], &far].concat())?;
    bed.write_config("")?;
    bed.start_controller(&["--interface", "eth0", "--interface", "eth1"])?;
    bed.wait_for_up(1)?;
    bed.request()?;
    let log = std::fs::read_to_string(bed.log())?;
    ensure!(log.contains("generic mode: slower than native"), "{log}");
    let interfaces = bed.json(&["status", "--json"])?["controller"]["interfaces"].clone();
    for (name, hint) in [("eth0", "ip link set eth0 mtu"), ("eth1", "ethtool -L eth1")] {
        let known = interfaces.as_array().into_iter().flatten();
        let interface = known.into_iter().find(|interface| interface["name"] == name);
        let interface = interface.context("the interface")?;
        ensure!(interface["mode"] == "generic", "{interface}");
        let cause = interface["cause"].as_str().unwrap_or_default();
        ensure!(cause.contains(hint), "{interface}");
    }
    Ok(())
}

#[test]
fn another_mode_is_attached_at_once() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 1)?;
    let _network = SecondNetwork::new(&bed)?;
    bed.write_config("")?;
    for mode in ["native", "generic", "native", "generic"] {
        bed.start_controller(&["--interface", "eth0", "--interface", "eth1", "--xdp-mode", mode])?;
        let interfaces = bed.json(&["status", "--json"])?["controller"]["interfaces"].clone();
        let interfaces = interfaces.as_array().context("a list")?;
        ensure!(interfaces.len() == 2, "{interfaces:?}");
        ensure!(interfaces.iter().all(|interface| interface["mode"] == mode), "{interfaces:?}");
        // What was attached stays, for the next controller to replace.
        bed.stop_controller(Signal::SIGTERM)?;
    }
    Ok(())
}

#[test]
fn a_backend_whose_hardware_address_changes_is_followed() -> Result<()> {
    let bed = Bed::new(LB, "native", 1)?;
    ensure!(bed.request()? == "mgmt01");
    bed.on_backend("mgmt01", "ip", &["link", "set", "eth0", "address", "02:00:00:00:77:01"])?;
    // The balancer's host learns it from the backend's next ARP; ask it now, as its kernel would.
    bed.on_backend("mgmt01", "ping", &["-c", "1", "-W", "2", "10.91.0.10"])?;
    wait_until("requests arrive again", || Ok(bed.request_within_a_second().is_ok()))
}

#[test]
fn a_service_on_every_address_follows_them_as_they_come_and_go() -> Result<()> {
    const SECOND: &str = "10.91.0.99";
    let mut bed = Bed::without_controller(LB, "native", 1)?;
    bed.write_config_of(
        "[[service]]\nname = \"ui\"\nbind = [\"*:8080\"]\n[service.check]\ninterval = \"200ms\"\n\
         [[service.backend]]\nname = \"mgmt01\"\naddress = \"10.91.0.101:8080\"\n",
    )?;
    bed.start_controller(&[])?;
    bed.wait_for_up(1)?;
    let bound = || -> Result<Vec<String>> {
        let services = bed.json(&["list", "services", "--json"])?;
        let bound = services[0]["bind"].as_array().into_iter().flatten();
        Ok(bound.filter_map(|bind| bind.as_str().map(str::to_owned)).collect())
    };
    ensure!(bound()? == ["10.91.0.10:8080", "10.91.0.100:8080"], "{:?}", bound()?);
    ensure!(bed.request()? == "mgmt01");

    bed.balancer.ip(&["addr", "add", &format!("{SECOND}/32"), "dev", "eth0"])?;
    let start = Instant::now();
    wait_until("the new address is served", || Ok(bound()?.len() == 3))?;
    let took = start.elapsed();
    // At once, rather than when the controller looks around without a cause, every five seconds.
    ensure!(took < Duration::from_secs(3), "{took:?}");
    let socket = format!("{SECOND}:8080");
    let mut held = Connection::open(&bed.client, &socket)?;
    ensure!(held.request()? == "mgmt01");

    bed.balancer.ip(&["addr", "del", &format!("{SECOND}/32"), "dev", "eth0"])?;
    wait_until("the address is let go", || Ok(bound()?.len() == 2))?;
    ensure!(held.request()? == "mgmt01", "what was open goes on");
    let flows = bed.json(&["list", "flows", "--json"])?;
    ensure!(flows.to_string().contains(&socket), "{flows}");
    Ok(())
}
