//! What operators change and ask while a balancer serves, and what they see then.

use std::{fs, io::Write as _, net::SocketAddr, os::unix::net::UnixStream, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use lb_tests::{
    bed::Bed,
    client,
    script::Scripted,
    wait::{suspend, wait_until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");

fn change(bed: &Bed, old: &str, new: &str) -> Result<()> {
    let text = fs::read_to_string(bed.config())?;
    ensure!(text.contains(old), "no {old} in {text}");
    Ok(fs::write(bed.config(), text.replace(old, new))?)
}

#[test]
fn another_kind_of_check_takes_nobody_out_before_it_has_an_opinion() -> Result<()> {
    let mut bed = Bed::new(LB, "native", 1)?;
    // It answers nothing for now.
    let slow: SocketAddr = "10.91.0.101:9100".parse()?;
    let server = Scripted::start(bed.backend_namespace("mgmt01")?, slow)?;
    let check = "[service.check]\ntype = \"tcp\"\nsend = \"?\"\nexpect = \"!\"\nport = 9100";
    change(&bed, "[service.check]", check)?;
    change(&bed, "timeout = \"1s\"", "timeout = \"3s\"")?;
    bed.lb_ok(&["reload"])?;
    server.wait()?;
    ensure!(bed.shown("mgmt01")?["state"] == "up", "{}", bed.shown("mgmt01")?);
    bed.request()?;
    // Nor does a controller that comes with another configuration.
    bed.stop_controller(Signal::SIGKILL)?;
    change(&bed, "type = \"tcp\"", "type = \"http\"")?;
    change(&bed, "send = \"?\"\nexpect = \"!\"", "")?;
    bed.start_controller(&[])?;
    ensure!(bed.shown("mgmt01")?["state"] == "up", "{}", bed.shown("mgmt01")?);
    bed.request()?;
    bed.wait_for_state("mgmt01", "down")
}

#[test]
fn pins_are_not_taken_away_from_another_network_namespace() -> Result<()> {
    let mut bed = Bed::new(LB, "native", 2)?;
    let mut held = client::held(&bed, 4)?;
    bed.stop_controller(Signal::SIGTERM)?;
    let output = bed.client.command(LB).args(["run", "-c"]).arg(bed.config()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(said.contains("of a balancer in another network namespace"), "{said}");
    for (name, connection) in &mut held {
        ensure!(connection.request()? == *name);
    }
    bed.start_controller(&[])?;
    bed.wait_for_up(2)?;
    for (name, connection) in &mut held {
        ensure!(connection.request()? == *name);
    }
    Ok(())
}

#[test]
fn an_address_to_send_from_that_is_not_here_is_told() -> Result<()> {
    let bed = Bed::new(LB, "native", 1)?;
    bed.balancer.ip(&["address", "add", "10.91.0.77/32", "dev", "eth0"])?;
    change(&bed, "[limits]", "[nat]\naddresses = [\"10.91.0.77\"]\n[limits]")?;
    bed.lb_ok(&["reload"])?;
    bed.request()?;
    bed.balancer.ip(&["address", "del", "10.91.0.77/32", "dev", "eth0"])?;
    bed.wait_for_event("10.91.0.77 of nat.addresses isn't an address of this host")?;
    change(&bed, "10.91.0.77", "10.91.0.78")?;
    bed.lb_ok(&["reload"])?;
    bed.wait_for_event("10.91.0.78 of nat.addresses isn't an address of this host")?;
    bed.balancer.ip(&["address", "add", "10.91.0.78/32", "dev", "eth0"])?;
    bed.wait_for_event("10.91.0.78 of nat.addresses is an address of this host now")?;
    wait_until("it is served again", || Ok(bed.request_within_a_second().is_ok()))
}

#[test]
fn what_is_changed_while_an_interface_is_away_is_applied_and_that_is_shown() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 2)?;
    bed.write_config("")?;
    bed.start_controller(&["--admin", "10.91.0.10:8404"])?;
    bed.wait_for_up(2)?;
    let more = ["link", "add", "more0", "type", "veth", "peer", "name", "more1"];
    bed.balancer.ip(&more)?;
    // At once, also if no news of it has come yet.
    change(&bed, "[\"eth0\"]", "[\"eth0\", \"more0\"]")?;
    bed.lb_ok(&["reload"])?;
    bed.balancer.ip(&["link", "del", "more0"])?;
    bed.wait_for_event("no such interface: more0")?;
    change(&bed, "10.91.0.102:8080\"", "10.91.0.102:8080\"\nweight = 3")?;
    bed.lb_ok(&["reload"])?;
    ensure!(bed.shown("mgmt02")?["weight"] == 3);
    let status = bed.lb_ok(&["status"])?;
    ensure!(status.contains("more0, absent: no such interface"), "{status}");
    let url = "http://10.91.0.10:8404/readyz";
    ensure!(bed.client.run("curl", &["-sf", url]).is_err(), "it is ready");
    change(&bed, "\"more0\"", "\"more7\"")?;
    let output = bed.lb(&["reload"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2) && said.contains("no such interface: more7"), "{said}");
    Ok(())
}

#[test]
fn what_operators_said_of_a_backend_holds_also_with_another_address() -> Result<()> {
    let bed = Bed::new(LB, "native", 2)?;
    bed.lb_ok(&["maint", "ui/mgmt02"])?;
    bed.lb_ok(&["weight", "ui/mgmt01", "7"])?;
    change(&bed, "10.91.0.102:8080", "10.91.0.102:8081")?;
    bed.lb_ok(&["reload"])?;
    let backends = bed.json(&["list", "backends", "--json"])?;
    let mut all = backends.as_array().into_iter().flatten();
    let moved = all.find(|shown| shown["address"] == "10.91.0.102:8081").context("no backend")?;
    ensure!(moved["state"] == "maint", "{moved}");
    ensure!(bed.shown("mgmt01")?["weight"] == 7);
    Ok(())
}

#[test]
fn what_is_asked_of_a_controller_that_hangs_is_not_done_later() -> Result<()> {
    let bed = Bed::new(LB, "native", 2)?;
    let process = Pid::from_raw(i32::try_from(bed.controller_pid()?)?);
    suspend(process)?;
    let asked = (|| {
        let mut client = UnixStream::connect(bed.socket())?;
        let drain =
            r#"{"command":"operate","service":"ui","backend":"mgmt01","operation":"drain"}"#;
        client.write_all(format!("{drain}\n").as_bytes())
    })();
    kill(process, Signal::SIGCONT)?;
    asked?;
    // Whoever asks later is answered later.
    bed.lb_ok(&["weight", "ui/mgmt02", "5"])?;
    ensure!(bed.shown("mgmt01")?["state"] == "up", "{}", bed.shown("mgmt01")?);
    ensure!(!bed.has_told("drain ui/mgmt01")?, "{}", bed.lb_ok(&["events"])?);
    Ok(())
}

#[test]
fn who_follows_events_keeps_nobody_from_asking() -> Result<()> {
    let bed = Bed::new(LB, "native", 1)?;
    let follow = || -> Result<UnixStream> {
        let mut stream = UnixStream::connect(bed.socket())?;
        stream.write_all(b"{\"command\":\"events\",\"follow\":true}\n")?;
        Ok(stream)
    };
    let following: Vec<UnixStream> = (0..300).map(|_| follow()).collect::<Result<_>>()?;
    wait_until("it answers", || Ok(bed.lb(&["weight", "ui/mgmt01", "3"])?.status.success()))?;
    ensure!(bed.shown("mgmt01")?["weight"] == 3);
    let output = bed.lb(&["events", "--follow"])?;
    ensure!(String::from_utf8_lossy(&output.stderr).contains("64 clients follow events"));
    drop(following);
    wait_until("there is room", || {
        let mut client = bed.lb_command(&["events", "--follow"]).spawn()?;
        thread::sleep(Duration::from_millis(200));
        let is_following = client.try_wait()?.is_none();
        client.kill()?;
        client.wait()?;
        Ok(is_following)
    })
}

#[test]
fn who_waits_for_a_drain_is_told_when_it_ends_otherwise() -> Result<()> {
    let bed = Bed::new(LB, "native", 1)?;
    let _held = bed.open()?;
    let waiting = bed
        .lb_command(&["drain", "ui/mgmt01", "--wait"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    bed.wait_for_state("mgmt01", "drain")?;
    bed.lb_ok(&["ready", "ui/mgmt01"])?;
    let output = waiting.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && said.contains("flows left: 1"), "{output:?}");
    Ok(())
}
