//! Traffic through the balancer, end to end: real servers and clients, in native and in generic
//! mode, with every checksum verified by the receiving kernel.

use std::{collections::HashMap, fs};

use anyhow::{Context, Result, ensure};
use lb_tests::{
    bed::{BALANCER, Bed, SERVICE},
    client::{self, Connection, Load, sha256},
    wait::wait_until,
};
use nix::sys::signal::Signal;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");
const MODES: [&str; 2] = ["native", "generic"];

#[test]
fn requests_are_spread_and_counted_in_both_modes() -> Result<()> {
    const REQUESTS: u64 = 300;
    for mode in MODES {
        let bed = Bed::new(LB, mode, 3)?;
        let mut answered: HashMap<String, u64> = HashMap::new();
        for _ in 0..REQUESTS {
            *answered.entry(bed.request()?).or_default() += 1;
        }
        ensure!(answered.len() == 3, "{mode}: {answered:?}");
        for (name, count) in &answered {
            // Binomial with p = 1/3: the mean is 100, and five standard deviations are 41.
            ensure!((59..=141).contains(count), "{mode}: {answered:?}");
            let shown = bed.shown(name)?;
            ensure!(shown["new_flows"] == *count, "{mode}: {answered:?}, {shown}");
            ensure!(shown["packets"].as_u64() > Some(count * 3), "{shown}");
            ensure!(shown["reply_packets"].as_u64() > Some(count * 2), "{shown}");
        }
        let status = bed.json(&["status", "--json"])?;
        ensure!(status["controller"]["interfaces"][0]["mode"] == mode, "{status}");
        for error in ["port_collision", "tables_incomplete", "no_egress", "bad_ip_checksum"] {
            ensure!(bed.reason(error)? == 0, "{mode}: {error}");
        }
    }
    Ok(())
}

#[test]
fn large_files_arrive_whole_in_both_modes() -> Result<()> {
    const MEGABYTES: usize = 200;
    for mode in MODES {
        let bed = Bed::new(LB, mode, 1)?;
        let big = bed.backend_file("mgmt01", "../big");
        let mut bytes = vec![0; MEGABYTES << 20];
        fastrand::Rng::with_seed(1).fill(&mut bytes);
        fs::write(&big, bytes)?;
        let wanted = sha256(&big)?;

        let got = bed.backend_file("mgmt01", "../got");
        let url = format!("http://{SERVICE}/big");
        let got_path = got.to_str().context("UTF-8")?;
        bed.client.run("curl", &["-sSf", "--max-time", "120", "-o", got_path, &url])?;
        ensure!(sha256(&got)? == wanted, "{mode}: download");

        let url = format!("http://{SERVICE}/upload/big");
        let big_path = big.to_str().context("UTF-8")?;
        bed.client.run("curl", &["-sSf", "--max-time", "120", "-T", big_path, &url])?;
        ensure!(sha256(&bed.backend_file("mgmt01", "upload/big"))? == wanted, "{mode}: upload");
        ensure!(bed.reason("too_big")? == 0, "{mode}");
    }
    Ok(())
}

#[test]
fn a_draining_backend_keeps_its_connections_and_gets_no_new_ones() -> Result<()> {
    let bed = Bed::new(LB, "native", 3)?;
    let mut held = client::held(&bed, 30)?;
    ensure!(held.iter().any(|(name, _)| name == "mgmt02"), "no connection to drain");
    let load = Load::start(&bed, 32, 4)?;

    let said = bed.lb_ok(&["drain", "ui/mgmt02"])?;
    ensure!(said == "ui/mgmt02: drain, weight 1\n", "{said}");
    let shown = bed.shown("mgmt02")?;
    ensure!(shown["state"] == "drain" && shown["share"] == 0.0, "{shown}");
    let before = bed.new_flows("mgmt02")?;
    for _ in 0..60 {
        ensure!(bed.request()? != "mgmt02", "a new connection reached it");
    }
    for (name, connection) in &mut held {
        ensure!(connection.request()? == *name, "a connection moved");
    }
    load.finish()?;
    ensure!(bed.new_flows("mgmt02")? == before, "a new connection reached it");

    bed.lb_ok(&["ready", "ui/mgmt02"])?;
    ensure!(bed.shown("mgmt02")?["share"].as_f64() > Some(0.33));
    Ok(())
}

#[test]
fn a_killed_backend_leaves_and_comes_back_and_the_others_notice_nothing() -> Result<()> {
    let bed = Bed::new(LB, "native", 3)?;
    let mut held = client::held(&bed, 30)?;
    bed.kill_backend("mgmt01")?;
    bed.wait_for_state("mgmt01", "down")?;
    let shown = bed.shown("mgmt01")?;
    ensure!(shown["check"]["detail"] == "connection refused", "{shown}");
    ensure!(shown["share"] == 0.0, "{shown}");
    for _ in 0..30 {
        ensure!(bed.request()? != "mgmt01", "a new connection reached it");
    }
    for (name, connection) in &mut held {
        let answer = connection.request();
        if name == "mgmt01" {
            ensure!(answer.is_err(), "its process is gone");
        } else {
            ensure!(answer? == *name, "a connection moved");
        }
    }
    bed.start_backend("mgmt01")?;
    bed.wait_for_state("mgmt01", "up")?;
    ensure!(bed.shown("mgmt01")?["share"].as_f64() > Some(0.33));
    wait_until("it gets connections again", || Ok(bed.request()? == "mgmt01"))
}

#[test]
fn without_any_backend_connections_are_refused_at_once() -> Result<()> {
    let bed = Bed::new(LB, "native", 2)?;
    bed.lb_ok(&["maint", "ui/mgmt01"])?;
    bed.lb_ok(&["drain", "ui/mgmt02"])?;
    let error = bed.request().expect_err("nobody is there");
    ensure!(error.to_string().contains("refused"), "{error:#}");
    ensure!(bed.reason("no_backend")? > 0);
    bed.lb_ok(&["ready", "ui/mgmt01"])?;
    bed.wait_for_state("mgmt01", "up")?;
    ensure!(bed.request()? == "mgmt01");
    Ok(())
}

#[test]
fn weights_share_new_connections() -> Result<()> {
    let bed = Bed::new(LB, "native", 2)?;
    bed.lb_ok(&["weight", "ui/mgmt01", "3"])?;
    let shown = bed.shown("mgmt01")?;
    ensure!(shown["weight"] == 3, "{shown}");
    ensure!((shown["share"].as_f64().context("share")? - 0.75).abs() < 0.01, "{shown}");
    bed.lb_ok(&["weight", "ui/mgmt01", "0"])?;
    for _ in 0..20 {
        ensure!(bed.request()? == "mgmt02");
    }
    let refused = bed.lb(&["weight", "ui/mgmt01", "257"])?;
    ensure!(refused.status.code() == Some(2), "{refused:?}");
    bed.lb_ok(&["ready", "ui/mgmt01"])?;
    ensure!(bed.shown("mgmt01")?["weight"] == 1);
    Ok(())
}

#[test]
fn forwarding_outlives_the_controller_and_the_next_one_takes_over() -> Result<()> {
    let mut bed = Bed::new(LB, "native", 3)?;
    let mut held = bed.open()?;
    let holder = held.request()?;
    bed.lb_ok(&["drain", "ui/mgmt03"])?;
    let load = Load::start(&bed, 16, 8)?;

    bed.stop_controller(Signal::SIGKILL)?;
    for _ in 0..50 {
        ensure!(bed.request()? != "mgmt03");
    }
    let status = bed.json(&["status", "--json"])?;
    ensure!(status["controller"].is_null(), "{status}");
    let before = bed.new_flows("mgmt01")?;
    ensure!(before > 0);

    bed.start_controller(&[])?;
    ensure!(bed.new_flows("mgmt01")? >= before, "the counters went on");
    let shown = bed.shown("mgmt03")?;
    ensure!(shown["state"] == "drain", "what an operator said is kept: {shown}");
    ensure!(bed.shown("mgmt01")?["state"] == "up", "a known backend needs no new check");
    ensure!(held.request()? == holder, "the connection moved");
    for _ in 0..50 {
        ensure!(bed.request()? != "mgmt03");
    }
    ensure!(bed.stop_controller(Signal::SIGTERM)?.success());
    ensure!(!bed.socket().exists());
    bed.request()?;
    bed.start_controller(&[])?;
    load.finish()?;
    ensure!(held.request()? == holder, "the connection moved");
    let log = fs::read_to_string(bed.log())?;
    ensure!(log.contains("taken_over=true"), "{log}");
    Ok(())
}

#[test]
fn detach_ends_forwarding_and_removes_every_pin() -> Result<()> {
    let mut bed = Bed::new(LB, "native", 1)?;
    bed.request()?;
    let refused = bed.lb(&["detach"])?;
    let error = String::from_utf8(refused.stderr)?;
    ensure!(refused.status.code() == Some(1) && error.contains("controller runs"), "{error}");
    bed.stop_controller(Signal::SIGTERM)?;
    bed.lb_ok(&["detach"])?;
    ensure!(!bed.pins().exists());
    ensure!(!bed.balancer.ip(&["link", "show", "eth0"])?.contains("xdp"));
    ensure!(bed.request().is_err(), "who answers?");

    bed.start_controller(&["--detach-on-exit"])?;
    bed.wait_for_up(1)?;
    bed.request()?;
    ensure!(bed.stop_controller(Signal::SIGINT)?.success());
    ensure!(!bed.pins().exists());
    Ok(())
}

#[test]
fn the_hosts_own_traffic_goes_on() -> Result<()> {
    for mode in MODES {
        let bed = Bed::new(LB, mode, 1)?;
        let address = format!("{BALANCER}:2222");
        bed.start_nginx(&bed.balancer, "self", &[&address])?;
        let mut session = Connection::open(&bed.client, &address)?;
        for _ in 0..20 {
            ensure!(session.request()? == "self", "{mode}");
            bed.request()?;
        }
        for target in [BALANCER, "10.91.0.100"] {
            bed.client.run("ping", &["-c", "3", "-i", "0.2", "-W", "2", target])?;
        }
        ensure!(bed.shown("mgmt01")?["state"] == "up", "{mode}: the checks go on");
    }
    Ok(())
}
