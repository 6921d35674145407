//! By direct return: backends are checked at the service's address, the way that its traffic takes, and
//! connections outlive the balancer.

use anyhow::{Context, Result, ensure};
use lb_tests::{
    client::Connection,
    modes::{IPV4, IPV6, MODES, Mode, Modes, Programs, VIP},
    wait::wait_until,
};
use nix::sys::signal::Signal;

const PROGRAMS: Programs = Programs {
    lb: env!("CARGO_BIN_EXE_lb-under-test"),
    decapsulator: env!("CARGO_BIN_EXE_decapsulator"),
    responder: env!("CARGO_BIN_EXE_responder"),
};

/// State and last check of a mode's backend for TCP.
fn state(modes: &Modes, mode: &Mode) -> Result<(String, String)> {
    let backends = modes.bed.json(&["list", "backends", "--json"])?;
    let backends = backends.as_array().context("a list")?;
    let name = format!("{}-tcp", mode.name());
    let backend = backends.iter().find(|backend| backend["service"] == *name).context("it")?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok((text(&backend["state"]), text(&backend["check"]["detail"])))
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
                wait_until(&format!("{what} is down"), || Ok(state(&modes, mode)?.0 == "down"))?;
                let (_, detail) = state(&modes, mode)?;
                ensure!(detail.starts_with(&format!("VIP {vip}: ")), "{what}: {detail}");
            }
            for mode in direct().filter(|mode| mode.outside.name != family.name) {
                let (state, detail) = state(&modes, mode)?;
                ensure!(state == "up", "{xdp_mode}, {}: {state}, {detail}", mode.name());
            }
            change("add")?;
            for mode in with_it() {
                let what = format!("{xdp_mode}, {}", mode.name());
                wait_until(&format!("{what} is up"), || Ok(state(&modes, mode)?.0 == "up"))?;
                modes.curl(mode, "/peer", &[]).context(what)?;
            }
        }
        // Checks are nobody's traffic: there are the flows of the connections above, and no others.
        let flows = modes.bed.json(&["list", "flows", "--json"])?;
        let flows = flows.as_array().context("a list")?;
        ensure!(flows.len() == direct().count(), "{flows:?}");
        let backends = modes.bed.json(&["list", "backends", "--json"])?;
        let counted = |backend: &serde_json::Value| backend["new_flows"].as_u64();
        let total: u64 = backends.as_array().into_iter().flatten().filter_map(counted).sum();
        ensure!(total == direct().count() as u64, "{backends}");
    }
    Ok(())
}
