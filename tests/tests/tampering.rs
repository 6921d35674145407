//! What others do to what a running balancer depends on: to its pins, its links, its log and its process. It is told, and
//! mended where that can be.

use std::{
    fs,
    io::Read as _,
    net::TcpStream,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_common::abi::maps;
use lb_tests::{
    bed::Bed,
    client,
    wait::{suspend, wait_until},
};
use lb_userspace::dataplane::{Pins, detach};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");

#[test]
fn pins_that_somebody_removes_are_told_and_made_anew() -> Result<()> {
    let mut bed = Bed::new(LB, "native", 2)?;
    let pins = Pins::new(bed.pins());
    fs::remove_file(pins.map(maps::FRAGMENTS))?;
    let link = pins.links().pop().context("a link")?;
    fs::remove_file(link.path)?;
    bed.wait_for_event("FRAGMENTS, the link to eth0: forwarding goes on")?;
    bed.request()?;
    bed.stop_controller(Signal::SIGTERM)?;
    let log = fs::read_to_string(bed.log())?;
    ensure!(log.contains("stopped; the data plane isn't whole"), "{log}");
    bed.start_controller(&[])?;
    ensure!(bed.has_told("what they held is lost: FRAGMENTS")?);
    bed.wait_for_up(2)?;
    bed.request()?;
    ensure!(pins.missing().is_empty() && pins.links().len() == 1);
    Ok(())
}

#[test]
fn services_are_found_although_it_is_lost_which_ports_they_have() -> Result<()> {
    const SERVICE: &str = "10.91.0.100:443";
    let mut bed = Bed::without_controller(LB, "native", 1)?;
    bed.write_config("")?;
    let text = fs::read_to_string(bed.config())?;
    fs::write(bed.config(), text.replace(lb_tests::bed::SERVICE, SERVICE))?;
    bed.start_controller(&[])?;
    bed.wait_for_up(1)?;
    let mut held = client::Connection::open(&bed.client, SERVICE)?;
    held.request()?;
    bed.stop_controller(Signal::SIGKILL)?;
    fs::remove_file(Pins::new(bed.pins()).map(maps::PORT_SETS))?;
    bed.start_controller(&[])?;
    ensure!(bed.has_told("what they held is lost: PORT_SETS")?);
    held.request()?;
    client::Connection::open(&bed.client, SERVICE)?.request().map(drop)
}

#[test]
fn a_program_that_somebody_detaches_is_attached_again() -> Result<()> {
    let bed = Bed::new(LB, "native", 2)?;
    let mut held = client::held(&bed, 4)?;
    ensure!(detach(&Pins::new(bed.pins()), |_| true)? == ["eth0"]);
    ensure!(bed.request_within_a_second().is_err(), "it is still attached");
    bed.wait_for_event("somebody detached the program")?;
    wait_until("it is served again", || Ok(bed.request_within_a_second().is_ok()))?;
    for (name, connection) in &mut held {
        ensure!(connection.request()? == *name);
    }
    Ok(())
}

#[test]
fn something_else_in_the_place_of_a_pin_is_named() -> Result<()> {
    let mut bed = Bed::new(LB, "native", 2)?;
    let pins = Pins::new(bed.pins());
    bed.stop_controller(Signal::SIGTERM)?;
    let place = pins.map(maps::FLOWS);
    fs::remove_file(&place)?;
    let says = |arguments: &[&str], what: &str| -> Result<()> {
        let output = bed.lb(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && said.contains(what), "{output:?}");
        Ok(())
    };
    says(&["list", "flows"], "the pin of map FLOWS is gone")?;
    fs::create_dir(&place)?;
    says(&["list", "flows"], "no map is pinned there; remove what is")?;
    says(&["run"], "no map is pinned there; remove what is")?;
    bed.request()?;
    fs::remove_dir(&place)?;
    // Nor does it matter what lies around.
    fs::create_dir(pins.directory().join("stages_cafe"))?;
    bed.start_controller(&[])?;
    bed.wait_for_up(2)?;
    ensure!(bed.has_told("stages_cafe")?);
    bed.request()?;
    fs::remove_dir(pins.directory().join("stages_cafe"))?;
    Ok(())
}

#[test]
fn a_log_that_nobody_reads_stops_nothing_and_its_lines_are_counted() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 1)?;
    // Hosts that are looked for again and again are worth some lines.
    let absent: String = (120..250)
        .map(|host| {
            format!("[[service.backend]]\nname = \"b{host}\"\naddress = \"10.91.0.{host}:80\"\n")
        })
        .collect();
    bed.write_config(&absent)?;
    let (mut reader, writer) = std::io::pipe()?;
    let mut command = bed.balancer.command(LB);
    command.args(["run", "-c"]).arg(bed.config()).args(["--admin", "10.91.0.10:8404"]);
    command.env("RUST_LOG", "trace").stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer);
    bed.spawn_controller(&mut command)?;
    // It holds an end of the pipe.
    drop(command);
    bed.wait_for_state("mgmt01", "up")?;
    let lost = || -> Result<u64> {
        let url = "http://10.91.0.10:8404/metrics";
        let metrics = bed.client.run("curl", &["-sSf", "--max-time", "5", url])?;
        let line = metrics.lines().find(|line| line.starts_with("lb_log_lines_lost_total"));
        let count = line.and_then(|line| line.rsplit(' ').next());
        Ok(count.context("lb_log_lines_lost_total")?.parse()?)
    };
    wait_until("lines are lost", || Ok(lost()? > 0))?;
    bed.lb_ok(&["drain", "ui/mgmt01"])?;
    bed.lb_ok(&["ready", "ui/mgmt01"])?;
    bed.wait_for_event("lines of the log are lost")?;
    bed.request()?;
    let start = Instant::now();
    ensure!(bed.stop_controller(Signal::SIGTERM)?.success());
    ensure!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let mut read = Vec::new();
    reader.read_to_end(&mut read)?;
    ensure!(!read.is_empty());
    Ok(())
}

#[test]
fn a_controller_that_hangs_is_shown_as_such() -> Result<()> {
    let bed = Bed::new(LB, "native", 1)?;
    let process = Pid::from_raw(i32::try_from(bed.controller_pid()?)?);
    suspend(process)?;
    let start = Instant::now();
    let shown = bed.lb_ok(&["status"]);
    let took = start.elapsed();
    kill(process, Signal::SIGCONT)?;
    let shown = shown?;
    ensure!(shown.contains("controller  doesn't answer") && shown.contains("mgmt01"), "{shown}");
    ensure!(took < Duration::from_secs(10), "{took:?}");
    Ok(())
}

#[test]
fn guests_that_say_nothing_take_neither_files_nor_the_pages() -> Result<()> {
    /// More than are let in at a time.
    const GUESTS: usize = 300;
    let mut bed = Bed::without_controller(LB, "native", 1)?;
    bed.write_config("")?;
    bed.start_controller(&["--admin", "10.91.0.10:8404"])?;
    bed.wait_for_up(1)?;
    let files = || -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", bed.controller_pid()?))?.count())
    };
    let before = files()?;
    let silent: Vec<TcpStream> = client::within(&bed.client, || {
        (0..GUESTS).map(|_| TcpStream::connect("10.91.0.10:8404")).collect::<Result<_, _>>()
    })?;
    wait_until("they are let in", || Ok(files()? >= before + 250))?;
    ensure!(files()? < before + GUESTS - 20, "{} files, {before} before", files()?);
    // It waits until those are out.
    let get = ["-sSf", "--max-time", "60", "http://10.91.0.10:8404/healthz"];
    ensure!(bed.client.run("curl", &get)? == "ok\n");
    drop(silent);
    bed.request().map(drop)
}
