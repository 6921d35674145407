//! By direct return: backends are checked at the service's address, the way that its traffic takes, and
//! connections outlive the balancer.

use std::fs;

use anyhow::{Context, Result, ensure};
use lb_tests::{
    client::Connection,
    modes::{IPV4, IPV6, MODES, Mode, Modes, Programs, VIP},
    wait::wait_until,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const PROGRAMS: Programs = Programs {
    lb: env!("CARGO_BIN_EXE_lb-under-test"),
    decapsulator: env!("CARGO_BIN_EXE_decapsulator"),
    responder: env!("CARGO_BIN_EXE_responder"),
};

/// What is shown of a mode's backend for TCP.
fn shown(modes: &Modes, mode: &Mode) -> Result<Value> {
    let backends = modes.bed.json(&["list", "backends", "--json"])?;
    let name = format!("{}-tcp", mode.name());
    let mut backends = backends.as_array().into_iter().flatten();
    backends.find(|backend| backend["service"] == *name).cloned().context("no such backend")
}

#[test]
fn by_direct_return_connections_outlive_a_move_to_another_balancer() -> Result<()> {
    let mut modes = Modes::new(PROGRAMS, "native")?;
    let direct = || MODES.iter().filter(|mode| !mode.translates());
    let mut held = Vec::new();
    for mode in direct() {
        let vip = mode.outside.socket(VIP, mode.port);
        let mut connection = Connection::open(&modes.bed.client, &vip)?;
        connection.request().with_context(|| mode.name())?;
        held.push((mode, connection));
    }
    // Another balancer knows of no connection, but has the same rings.
    modes.bed.stop_controller(Signal::SIGTERM)?;
    modes.bed.lb_ok(&["detach"])?;
    modes.bed.start_controller(&[])?;
    modes.wait_for_backends(2 * MODES.len())?;
    for (mode, mut connection) in held {
        connection.request().with_context(|| mode.name())?;
    }
    ensure!(modes.bed.reason("adopted")? >= direct().count() as u64);
    Ok(())
}

#[test]
fn a_check_of_a_port_that_nothing_is_bound_to_reaches_the_backend() -> Result<()> {
    let mut modes = Modes::new(PROGRAMS, "native")?;
    let mode = MODES.iter().find(|mode| mode.forwarding == "dsr").context("a mode")?;
    // Without a service by `nat`, to whose replies all ports belong.
    let text = fs::read_to_string(modes.bed.config())?;
    let mut services = text.split("[[service]]\n");
    let name = format!("name = \"{}-tcp\"\n", mode.name());
    let service = services.find(|service| service.contains(&name)).context("its service")?;
    let interval = "interval = \"200ms\"\n";
    let service = service.replace(interval, &format!("{interval}port = 80\n"));
    modes.bed.stop_controller(Signal::SIGTERM)?;
    modes.bed.lb_ok(&["detach"])?;
    modes.bed.write_config_of(&format!("[[service]]\n{service}"))?;
    modes.bed.start_controller(&[])?;
    wait_until("it is down", || Ok(shown(&modes, mode)?["state"] == "down"))?;
    let host = modes.bed.backend_namespace(&format!("mgmt{:02}", mode.host))?;
    modes.bed.start_nginx(host, "checked", &["0.0.0.0:80"])?;
    wait_until("it is up", || Ok(shown(&modes, mode)?["state"] == "up"))
}

#[test]
fn a_backend_without_the_services_address_is_down() -> Result<()> {
    for xdp_mode in ["native", "generic"] {
        let modes = Modes::new(PROGRAMS, xdp_mode)?;
        let direct = || MODES.iter().filter(|mode| !mode.translates());
        for (family, bits) in [(&IPV4, 32), (&IPV6, 128)] {
            let vip = family.address(VIP);
            let change = |verb: &str| -> Result<()> {
                for host in ["mgmt02", "mgmt03"] {
                    let host = modes.bed.backend_namespace(host)?;
                    host.ip(&["addr", verb, &format!("{vip}/{bits}"), "dev", "lo"])?;
                }
                Ok(())
            };
            let with_it = || direct().filter(|mode| mode.outside.name == family.name);
            change("del")?;
            for mode in with_it() {
                let what = format!("{xdp_mode}, {}", mode.name());
                wait_until(&format!("{what} is down"), || {
                    Ok(shown(&modes, mode)?["state"] == "down")
                })?;
                let backend = shown(&modes, mode)?;
                let detail = backend["check"]["detail"].as_str().unwrap_or_default();
                ensure!(detail.starts_with(&format!("VIP {vip}: ")), "{what}: {backend}");
                ensure!(backend["flows"] == 0, "{what}: a check is no flow: {backend}");
            }
            for mode in direct().filter(|mode| mode.outside.name != family.name) {
                let backend = shown(&modes, mode)?;
                ensure!(backend["state"] == "up", "{xdp_mode}: {backend}");
            }
            change("add")?;
            for mode in with_it() {
                let what = format!("{xdp_mode}, {}", mode.name());
                wait_until(&format!("{what} is up"), || Ok(shown(&modes, mode)?["state"] == "up"))?;
                modes.curl(mode, "/peer", &[]).context(what)?;
            }
        }
        // Checks are nobody's traffic: there are the flows of the connections above, and no others.
        let flows = modes.bed.json(&["list", "flows", "--json"])?;
        let flows = flows.as_array().context("a list")?;
        ensure!(flows.len() == direct().count(), "{flows:?}");
        let backends = modes.bed.json(&["list", "backends", "--json"])?;
        let counted = |backend: &Value| backend["new_flows"].as_u64();
        let total: u64 = backends.as_array().into_iter().flatten().filter_map(counted).sum();
        ensure!(total == direct().count() as u64, "{backends}");
    }
    Ok(())
}
