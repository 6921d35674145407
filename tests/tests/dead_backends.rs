//! Backends that die, end to end: what their clients see, and how soon.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_tests::{
    bed::{Bed, SERVICE},
    client::{self, Connection},
    rivals::{self, HAPROXY, Haproxy, NFTABLES},
    wait::{PATIENCE, wait_until},
};
use nix::sys::signal::Signal;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");
/// The file that checks ask for.
const WELL: &str = "upload/well";
const MODES: [&str; 2] = ["native", "generic"];

/// A service with that `on_down` and two backends, whose checks take them down after so many failures, at
/// intervals of 200 ms.
fn bed(mode: &'static str, on_down: &str, fall: u32) -> Result<Bed> {
    let mut bed = Bed::without_controller(LB, mode, 2)?;
    write_config(&bed, on_down, fall, "")?;
    for name in ["mgmt01", "mgmt02"] {
        fs::write(bed.backend_file(name, WELL), "well")?;
    }
    bed.start_controller(&[])?;
    bed.wait_for_up(2)?;
    Ok(bed)
}

fn write_config(bed: &Bed, on_down: &str, fall: u32, more: &str) -> Result<()> {
    let mut text = format!(
        "[[service]]\nname = \"ui\"\nbind = [\"{SERVICE}\"]\non_down = \"{on_down}\"\n{more}\
         [service.check]\npath = \"/{WELL}\"\ninterval = \"200ms\"\ntimeout = \"1s\"\nfall = {fall}\n"
    );
    for name in ["mgmt01", "mgmt02"] {
        let address = bed.backend_address(name)?;
        text += &format!("[[service.backend]]\nname = \"{name}\"\naddress = \"{address}:8080\"\n");
    }
    bed.write_config_of(&text)
}

/// By then, two checks have failed: each may begin 200 ms after the one before, and takes a second.
const NOTICED: Duration = Duration::from_millis(2400);

#[test]
fn silent_clients_of_a_host_that_vanished_are_told() -> Result<()> {
    for mode in MODES {
        let bed = bed(mode, "reset", 2)?;
        let mut held = client::held(&bed, 12)?;
        let count = held.iter().filter(|(name, _)| name == "mgmt01").count();
        ensure!(count > 0 && count < 12, "{mode}: {count} of 12 to mgmt01");
        let vanished = Instant::now();
        bed.on_backend("mgmt01", "ip", &["link", "set", "eth0", "down"])?;
        for (name, connection) in &mut held {
            if name == "mgmt01" {
                // It says nothing by itself.
                connection.wait_for_reset(PATIENCE)?;
            }
        }
        println!("{mode}: {count} silent clients were told after {:?}", vanished.elapsed());
        ensure!(vanished.elapsed() < NOTICED + Duration::from_secs(1), "{mode}: too late");
        bed.wait_for_state("mgmt01", "down")?;
        for (name, connection) in held.iter_mut().filter(|(name, _)| name != "mgmt01") {
            ensure!(connection.request()? == *name, "{mode}: a connection of the other moved");
        }
        ensure!(bed.reason("backend_down")? >= count as u64);
    }
    Ok(())
}

#[test]
fn a_client_of_a_host_that_vanished_hangs_behind_haproxy_and_nftables() -> Result<()> {
    /// For how long they are watched.
    const WATCHED: Duration = Duration::from_secs(8);
    let bed = bed("native", "reset", 2)?;
    // One backend, so that all are its clients.
    bed.lb_ok(&["maint", "ui/mgmt02"])?;
    let _haproxy = Haproxy::start(&bed, &["mgmt01"])?;
    rivals::nftables(&bed, &["mgmt01"], (40_000, 50_000))?;
    let mut connections = Vec::new();
    for (name, address) in [("lb", SERVICE), ("HAProxy", HAPROXY), ("nftables", NFTABLES)] {
        let mut connection = Connection::open(&bed.client, address)?;
        ensure!(connection.request()? == "mgmt01", "{name}");
        connections.push((name, connection));
    }
    let vanished = Instant::now();
    bed.on_backend("mgmt01", "ip", &["link", "set", "eth0", "down"])?;
    for (name, connection) in &mut connections {
        let rest = WATCHED.saturating_sub(vanished.elapsed()).max(Duration::from_millis(1));
        let told = connection.wait_for_reset(rest).is_ok();
        println!(
            "{name}: {} after {:.1?}",
            if told { "told" } else { "hangs" },
            vanished.elapsed()
        );
        ensure!(told == (*name == "lb"), "{name}");
    }
    Ok(())
}

#[test]
fn flows_that_are_kept_go_on_and_those_that_move_are_forgotten() -> Result<()> {
    let bed = bed("native", "keep", 1)?;
    let mut held = client::held(&bed, 12)?;
    // Its check fails, and it goes on to serve.
    fs::remove_file(bed.backend_file("mgmt01", WELL))?;
    bed.wait_for_state("mgmt01", "down")?;
    for (name, connection) in &mut held {
        ensure!(connection.request().is_ok(), "{name}: kept");
    }
    write_config(&bed, "move", 1, "")?;
    bed.lb_ok(&["reload"])?;
    wait_until("its flows are forgotten", || Ok(bed.shown("mgmt01")?["flows"] == 0))?;
    for (name, connection) in &mut held {
        ensure!(connection.request().is_ok() == (name == "mgmt02"), "{name}: moved");
    }
    Ok(())
}

#[test]
fn a_process_that_died_costs_no_new_connection() -> Result<()> {
    for mode in MODES {
        // The checks notice nothing for a minute.
        let bed = bed(mode, "reset", 300)?;
        bed.kill_backend("mgmt01")?;
        let mut slow = 0;
        for _ in 0..60 {
            let start = Instant::now();
            ensure!(bed.request()? == "mgmt02", "{mode}: who else?");
            slow += usize::from(start.elapsed() > Duration::from_millis(500));
        }
        ensure!(bed.shown("mgmt01")?["state"] == "up", "{mode}: the checks have noticed");
        let withheld = bed.reason("refusal_withheld")?;
        ensure!(withheld > 0, "{mode}: no connection met it");
        println!("{mode}: {withheld} refusals withheld, {slow} of 60 connections waited");
    }
    Ok(())
}

#[test]
fn a_service_whose_every_backend_refuses_says_so() -> Result<()> {
    let bed = bed("native", "reset", 300)?;
    for name in ["mgmt01", "mgmt02"] {
        bed.kill_backend(name)?;
    }
    let refused = |bed: &Bed| -> Result<Duration> {
        let start = Instant::now();
        let error = Connection::open(&bed.client, SERVICE).err().context("who answers?")?;
        ensure!(format!("{error:#}").contains("refused"), "{error:#}");
        Ok(start.elapsed())
    };
    refused(&bed)?;
    let took = refused(&bed)?;
    ensure!(took < Duration::from_millis(500), "the second one is told at once: {took:?}");
    Ok(())
}

#[test]
fn a_drain_is_waited_for() -> Result<()> {
    let bed = bed("native", "reset", 2)?;
    let held = client::held(&bed, 12)?;
    let refused = bed.lb(&["drain", "ui/mgmt01", "--wait", "--timeout", "600ms"])?;
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1) && error.contains("left after 600ms"), "{error}");
    drop(held);
    let said = bed.lb_ok(&["drain", "ui/mgmt01", "--wait", "--timeout", "20s"])?;
    ensure!(said.ends_with("flows left: 0\n"), "{said}");
    Ok(())
}

#[test]
fn affinity_outlives_connections_ring_changes_and_the_controller() -> Result<()> {
    let mut bed = bed("native", "reset", 2)?;
    write_config(&bed, "reset", 2, "affinity = \"30m\"\n")?;
    bed.lb_ok(&["reload"])?;
    let home = bed.request()?;
    let other = if home == "mgmt01" { "mgmt02" } else { "mgmt01" };
    let stays = |bed: &Bed, at: &str| -> Result<()> {
        for _ in 0..10 {
            ensure!(bed.request()? == at, "it left {at}");
        }
        Ok(())
    };
    stays(&bed, &home)?;
    bed.lb_ok(&["weight", &format!("ui/{other}"), "256"])?;
    stays(&bed, &home)?;
    bed.stop_controller(Signal::SIGKILL)?;
    bed.start_controller(&[])?;
    stays(&bed, &home)?;
    bed.lb_ok(&["drain", &format!("ui/{home}")])?;
    stays(&bed, other)?;
    bed.lb_ok(&["ready", &format!("ui/{home}")])?;
    stays(&bed, other)
}

#[test]
fn lists_keep_clients_out_at_once_after_a_reload() -> Result<()> {
    let bed = bed("native", "reset", 2)?;
    let mut held = bed.open()?;
    held.request()?;
    write_config(&bed, "reset", 2, "deny = [\"10.91.0.0/24\"]\nallow = [\"10.91.0.77\"]\n")?;
    bed.lb_ok(&["reload"])?;
    ensure!(bed.request_within_a_second().is_err(), "it is let in");
    ensure!(bed.reason("access_denied")? > 0);
    held.request().context("what is open goes on")?;
    write_config(&bed, "reset", 2, "allow = [\"10.91.0.1\"]\n")?;
    bed.lb_ok(&["reload"])?;
    bed.request()?;
    Ok(())
}
