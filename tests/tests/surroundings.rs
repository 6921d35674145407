//! What goes on around the controller: news of the network that the kernel has no room for, a clock that jumps, an address
//! that is lost, maps that are full. Each has an outcome, and an event that says so.

use std::{
    fs,
    process::{Command, Stdio},
    time::SystemTime,
};

use anyhow::{Context, Result, ensure};
use lb_tests::{
    bed::Bed,
    client,
    wait::{suspend, wait_until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");

/// Seconds in a day.
const DAY: i64 = 86_400;

#[test]
fn what_the_kernel_had_no_room_to_tell_is_found_out() -> Result<()> {
    /// More than the buffer of a socket holds.
    const NEIGHBOURS: usize = 3000;
    let bed = Bed::new(LB, "native", 1)?;
    let batch = bed.config().with_extension("batch");
    let lines = (0..NEIGHBOURS).map(|number| {
        let (high, low) = (number / 250, number % 250 + 1);
        format!(
            "neigh replace 10.92.{high}.{low} lladdr 02:00:00:00:00:01 dev eth0 nud permanent\n"
        )
    });
    // The last of the news: the backend has another hardware address.
    let last = "neigh replace 10.91.0.101 lladdr 02:5b:00:00:00:77 dev eth0 nud permanent\n";
    fs::write(&batch, lines.chain([last.to_owned()]).collect::<String>())?;
    bed.on_backend("mgmt01", "ip", &["link", "set", "eth0", "address", "02:5b:00:00:00:77"])?;
    let process = Pid::from_raw(i32::try_from(bed.controller_pid()?)?);
    suspend(process)?;
    let told = bed.balancer.ip(&["-batch", batch.to_str().context("UTF-8")?]);
    kill(process, Signal::SIGCONT)?;
    told?;
    bed.wait_for_event("more changes to the network than there was room for")?;
    bed.request()?;
    // And what comes afterwards is heard.
    bed.on_backend("mgmt01", "ip", &["link", "set", "eth0", "address", "02:5b:00:00:00:78"])?;
    let again = ["neigh", "replace", "10.91.0.101", "lladdr", "02:5b:00:00:00:78", "dev", "eth0"];
    bed.balancer.ip(&again)?;
    wait_until("the backend is reached again", || Ok(bed.request_within_a_second().is_ok()))
}

/// Seconds since 1970 of a date that was shown.
fn seconds(shown: &Value) -> Result<i64> {
    let date = humantime::parse_rfc3339(shown.as_str().context("a date")?)?;
    Ok(i64::try_from(date.duration_since(SystemTime::UNIX_EPOCH)?.as_secs())?)
}

#[test]
fn a_clock_that_jumps_changes_nothing_but_the_dates() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 2)?;
    bed.write_config("")?;
    let clock = bed.config().with_file_name("clock");
    fs::write(&clock, "+0")?;
    // libfaketime reads its file anew each second. It could for each call, but then threads disturb each other: one in
    // hundreds sees the true time.
    let library = Command::new("faketime").args(["-f", "+0", "printenv", "LD_PRELOAD"]).output()?;
    let library = String::from_utf8(library.stdout)?;
    let mut command = bed.balancer.command(LB);
    command.args(["run", "-c"]).arg(bed.config());
    command.env("LD_PRELOAD", library.trim()).env("FAKETIME_TIMESTAMP_FILE", &clock);
    command.env("FAKETIME_CACHE_DURATION", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    bed.spawn_controller(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))?;
    bed.wait_for_up(2)?;
    let mut held = client::held(&bed, 8)?;
    let changes =
        |bed: &Bed| -> Result<i64> { seconds(&bed.shown("mgmt02")?["check"]["last_change"]) };
    let now = changes(&bed)?;
    let mut date = now;
    for (jump, forward) in [(DAY, true), (-DAY, false)] {
        fs::write(&clock, format!("{jump:+}"))?;
        wait_until("the controller sees it", || {
            bed.lb_ok(&["ready", "ui/mgmt01"])?;
            let events = bed.lb_ok(&["events", "--json"])?;
            let last: Value = serde_json::from_str(events.lines().last().context("an event")?)?;
            Ok((seconds(&last["time"])? - now - jump).abs() < DAY / 2)
        })?;
        for (name, connection) in &mut held {
            ensure!(connection.request()? == *name);
        }
        for _ in 0..4 {
            bed.request()?;
        }
        ensure!(bed.shown("mgmt01")?["state"] == "up" && changes(&bed)? == date, "nothing new");
        // Checks go on, and say when.
        if forward {
            bed.kill_backend("mgmt02")?;
            bed.wait_for_state("mgmt02", "down")?;
            held.retain(|(name, _)| name != "mgmt02");
        } else {
            bed.start_backend("mgmt02")?;
            bed.wait_for_state("mgmt02", "up")?;
        }
        date = changes(&bed)?;
        ensure!((date - now - jump).abs() < DAY / 2, "{date}, {jump} after {now}");
    }
    ensure!(!held.is_empty());
    for (name, connection) in &mut held {
        ensure!(connection.request()? == *name);
    }
    Ok(())
}

#[test]
fn an_address_that_is_lost_and_comes_back_costs_only_the_time_between() -> Result<()> {
    let bed = Bed::new(LB, "native", 2)?;
    let mut held = client::held(&bed, 8)?;
    let told =
        ["not reachable: no route to it", "10.91.0.100 isn't an address of this host any longer"];
    for (address, told) in ["10.91.0.10/24", "10.91.0.100/32"].into_iter().zip(told) {
        bed.balancer.ip(&["address", "del", address, "dev", "eth0"])?;
        bed.wait_for_event(told)?;
        ensure!(bed.shown("mgmt01")?["state"].is_string());
        bed.balancer.ip(&["address", "add", address, "dev", "eth0"])?;
        bed.wait_for_up(2)?;
        wait_until("it is served again", || Ok(bed.request_within_a_second().is_ok()))?;
        for (name, connection) in &mut held {
            ensure!(connection.request()? == *name, "{address}: a connection moved");
        }
    }
    Ok(())
}

#[test]
fn while_its_own_link_is_down_nothing_is_said_of_the_backends() -> Result<()> {
    let bed = Bed::new(LB, "native", 2)?;
    let mut held = client::held(&bed, 6)?;
    let switch = bed.switch.namespace();
    for (times, (namespace, interface)) in
        [(&bed.balancer, "eth0"), (switch, "lb")].iter().enumerate()
    {
        let told = |what: &str| {
            wait_until(what, || Ok(bed.lb_ok(&["events"])?.matches(what).count() > times))
        };
        namespace.ip(&["link", "set", interface, "down"])?;
        told("ERROR  no link on eth0")?;
        // Longer than it would take to find them down.
        std::thread::sleep(std::time::Duration::from_secs(4));
        for name in ["mgmt01", "mgmt02"] {
            let shown = bed.shown(name)?;
            ensure!(shown["state"] == "up", "{shown}");
        }
        namespace.ip(&["link", "set", interface, "up"])?;
        told("over: no link on eth0")?;
        wait_until("it is served again", || Ok(bed.request_within_a_second().is_ok()))?;
        for (name, connection) in &mut held {
            ensure!(connection.request()? == *name);
        }
    }
    Ok(())
}

#[test]
fn a_reload_that_finds_the_maps_full_changes_nothing_and_is_told() -> Result<()> {
    /// More than the maps are made for, where few are configured.
    const SERVICES: usize = 300;
    let bed = Bed::new(LB, "native", 2)?;
    let mut held = client::held(&bed, 4)?;
    let before = bed.json(&["list", "services", "--json"])?;
    let many: String = (0..SERVICES)
        .map(|number| {
            format!(
                "[[service]]\nname = \"s{number}\"\nbind = [\"10.91.0.100:{}\"]\n[[service.backend]]\nname = \
                 \"a\"\naddress = \"10.91.0.101:8080\"\n",
                9000 + number
            )
        })
        .collect();
    bed.write_config(&many)?;
    let output = bed.lb(&["reload"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2), "{output:?}");
    ensure!(said.contains("no room for another service: the maps were made for 256"), "{said}");
    ensure!(said.contains("nothing was changed"), "{said}");
    bed.wait_for_event("no room for another service")?;
    let after = bed.json(&["list", "services", "--json"])?;
    let names = |services: &Value| services.as_array().map(Vec::len);
    ensure!(names(&before) == names(&after), "{after}");
    for (name, connection) in &mut held {
        ensure!(connection.request()? == *name);
    }
    bed.write_config("")?;
    bed.lb_ok(&["reload"])?;
    bed.request().map(drop)
}

#[test]
fn what_this_host_could_not_check_says_nothing_of_the_backends() -> Result<()> {
    let bed = Bed::new(LB, "native", 2)?;
    let process = bed.controller_pid()?.to_string();
    let log = || fs::read_to_string(bed.log());
    let allow = |files: &str| {
        let limit = format!("--nofile={files}:");
        let status = Command::new("prlimit").args(["--pid", &process, &limit]).status()?;
        ensure!(status.success(), "prlimit: {status}");
        Ok(())
    };
    allow("3")?;
    wait_until("it is told", || Ok(log()?.contains("backends aren't checked any longer")))?;
    // More checks than it takes to be down.
    let checks = || bed.json(&["list", "backends", "--json"]);
    wait_until("no check can be made", || {
        let detail =
            |number: usize| Ok::<_, anyhow::Error>(checks()?[number]["check"]["detail"].clone());
        Ok([detail(0)?, detail(1)?].iter().all(|detail| {
            detail.as_str().is_some_and(|detail| detail.contains("Too many open files"))
        }))
    })?;
    std::thread::sleep(std::time::Duration::from_secs(2));
    for name in ["mgmt01", "mgmt02"] {
        ensure!(bed.shown(name)?["state"] == "up", "{}", bed.shown(name)?);
    }
    bed.request()?;
    allow("1024")?;
    bed.wait_for_event("over: backends aren't checked any longer")?;
    bed.request().map(drop)
}
