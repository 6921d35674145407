//! The controller under an operator's hands: reloads, wrong configurations, and starts that fail.

use std::{
    collections::HashMap,
    fs,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use lb_tests::{
    bed::Bed,
    client::{self, Load},
    variant,
    wait::wait_until,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");

/// What `lb run` says when it doesn't start, with its exit status.
fn failing_start(bed: &Bed, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let output = bed.lb(&[&["run"], arguments].concat())?;
    ensure!(!output.status.success(), "it started");
    Ok((output.status.code(), String::from_utf8(output.stderr)?))
}

fn slots(bed: &Bed) -> Result<Value> {
    Ok(bed.json(&["list", "rings", "--json"])?[0].clone())
}

#[test]
fn a_reload_changes_what_differs_and_disturbs_nothing_else() -> Result<()> {
    let bed = Bed::new(LB, "native", 3)?;
    let mut held = client::held(&bed, 24)?;
    ensure!(held.iter().any(|(name, _)| name == "mgmt03"), "no connection to leave behind");
    let load = Load::start(&bed, 16, 5)?;

    bed.write_config_with("", |name| name != "mgmt03")?;
    let said = bed.lb_ok(&["reload"])?;
    ensure!(said.contains("1 service, 2 backends"), "{said}");
    ensure!(slots(&bed)?["slots"]["mgmt03"].is_null(), "it left the ring");
    ensure!(bed.shown("mgmt03")?["state"] == "drain", "its flows are still shown");
    for _ in 0..30 {
        ensure!(bed.request()? != "mgmt03", "a new connection reached it");
    }
    for (name, connection) in &mut held {
        ensure!(connection.request()? == *name, "a connection moved");
    }

    bed.write_config("")?;
    bed.lb_ok(&["reload"])?;
    bed.wait_for_up(3)?;
    wait_until("it gets connections again", || Ok(bed.request()? == "mgmt03"))?;
    load.finish()?;
    drop(held);

    bed.write_config_with("", |name| name != "mgmt03")?;
    bed.lb_ok(&["reload"])?;
    wait_until("its flows have ended, and it is forgotten", || Ok(bed.shown("mgmt03").is_err()))
}

#[test]
fn a_ring_gets_back_what_it_was_and_equal_weights_share_equally() -> Result<()> {
    let bed = Bed::new(LB, "native", 4)?;
    let before = slots(&bed)?;
    let size = before["size"].as_f64().context("size")?;
    let counts: HashMap<String, f64> = serde_json::from_value(before["slots"].clone())?;
    ensure!(counts.len() == 4);
    for (name, count) in &counts {
        ensure!((count / size - 0.25).abs() <= 0.0025, "{name}: {count} of {size}");
    }
    bed.lb_ok(&["maint", "ui/mgmt02"])?;
    let without = slots(&bed)?;
    ensure!(without["slots"]["mgmt02"].is_null(), "{without}");
    ensure!(without["generation"] != before["generation"]);
    bed.lb_ok(&["ready", "ui/mgmt02"])?;
    bed.wait_for_up(4)?;
    ensure!(slots(&bed)?["slots"] == before["slots"]);
    Ok(())
}

#[test]
fn a_reload_with_a_wrong_file_changes_nothing() -> Result<()> {
    let bed = Bed::new(LB, "native", 2)?;
    let right = fs::read_to_string(bed.config())?;
    let before = (slots(&bed)?, bed.json(&["list", "services", "--json"])?);
    let wrong = [
        ("bind", "bnid", "unknown field"),
        ("10.91.0.101:8080", "10.91.0.101:70000", "out of range"),
        ("10.91.0.102:8080", "10.91.0.101:8080", "given twice"),
        ("\"eth0\"", "\"eth9\"", "no such interface: eth9; there are"),
        ("admin = \"\"", "admin = \"127.0.0.1:1\"", "can't be changed by a reload: ~ admin"),
        ("[limits]", "[nat]\nports = \"32768-60999\"\n\n[limits]", "overlaps net.ipv4"),
    ];
    for (old, new, wanted) in wrong {
        fs::write(bed.config(), right.replacen(old, new, 1))?;
        let socket = bed.socket();
        let arguments = ["--socket", socket.to_str().context("UTF-8")?, "reload"];
        let output = bed.lb(&arguments)?;
        let error = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(2) && error.contains(wanted), "{new}: {error}");
        ensure!(error.contains("nothing was changed"), "{new}: {error}");
    }
    fs::remove_file(bed.config())?;
    let socket = bed.socket();
    let output = bed.lb(&["--socket", socket.to_str().context("UTF-8")?, "reload"])?;
    ensure!(output.status.code() == Some(2), "{output:?}");
    fs::write(bed.config(), right)?;
    let after = (slots(&bed)?, bed.json(&["list", "services", "--json"])?);
    ensure!(before == after, "{before:?} {after:?}");
    bed.request()?;
    Ok(())
}

#[test]
fn starts_that_cannot_be_say_why_in_one_line() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 1)?;
    bed.write_config("")?;
    let one_line = |what: &str, (status, error): (Option<i32>, String), wanted: &str| {
        ensure!(error.starts_with("lb: ") && error.lines().count() == 1, "{what}: {error}");
        ensure!(error.contains(wanted), "{what}: {error}");
        Ok(status)
    };
    let said = failing_start(&bed, &["--interface", "eth9"])?;
    ensure!(one_line("interface", said, "no such interface: eth9; there are lo, eth0")? == Some(2));

    let said = failing_start(&bed, &["--pin-path", "/tmp/lb-pins"])?;
    one_line("no bpffs", said, "not on a BPF file system; mount one with `mount -t bpf")?;

    let said = failing_start(&bed, &["--interface", "lo", "--xdp-mode", "native"])?;
    one_line("no native mode", said, "the driver has no native XDP")?;
    ensure!(!bed.pins().exists(), "a failed start leaves nothing behind");

    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let admin = taken.local_addr()?.to_string();
    let mut command = std::process::Command::new(LB);
    command.args(["run", "--interface", "lo", "--admin", &admin, "-c"]).arg(bed.config());
    let output = command.output()?;
    let said = (output.status.code(), String::from_utf8(output.stderr)?);
    one_line("a port in use", said, &format!("admin pages on {admin}"))?;
    ensure!(!bed.pins().exists(), "a failed start leaves nothing behind");

    // As nobody, without any capability.
    let mut command = bed.balancer.command("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--bounding-set=-all"]);
    let readable = fs::read_to_string(bed.config())?;
    let open = tempfile::NamedTempFile::new_in("/tmp")?;
    fs::write(open.path(), readable)?;
    let mode = PermissionsExt::from_mode(0o644);
    fs::set_permissions(open.path(), mode)?;
    let copy = std::env::temp_dir().join(format!("lb-unprivileged-{}", std::process::id()));
    variant::copy(LB, &copy)?;
    let output = command.arg(&copy).args(["run", "-c"]).arg(open.path()).output();
    fs::remove_file(&copy)?;
    let output = output?;
    let said = (output.status.code(), String::from_utf8(output.stderr)?);
    one_line("not root", said, "not permitted: run as root, or with CAP_NET_ADMIN")?;

    bed.balancer.run("sysctl", &["-qw", "net.ipv4.ip_local_port_range=20000 60999"])?;
    let said = failing_start(&bed, &[])?;
    one_line("ports", said, "nat.ports 1024-32767 overlaps net.ipv4.ip_local_port_range")?;
    bed.balancer.run("sysctl", &["-qw", "net.ipv4.ip_local_port_range=32768 60999"])?;

    bed.start_controller(&[])?;
    let pid = bed.controller_pid()?.to_string();
    let said = failing_start(&bed, &[])?;
    one_line("a second one", said, "another controller runs on")?;
    ensure!(failing_start(&bed, &[])?.1.contains(&pid));
    Ok(())
}

#[test]
fn a_socket_left_behind_is_replaced() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 1)?;
    bed.write_config("")?;
    drop(UnixListener::bind(bed.socket())?);
    ensure!(bed.socket().exists());
    bed.start_controller(&[])?;
    bed.stop_controller(Signal::SIGTERM).map(drop)
}

#[test]
fn commands_without_a_data_plane_say_so() -> Result<()> {
    let bed = Bed::without_controller(LB, "native", 1)?;
    bed.write_config("")?;
    for (arguments, wanted) in [
        (&["list", "backends"][..], "no data plane at"),
        (&["status"], "no data plane at"),
        (&["detach"], "no data plane at"),
        (&["reload"], "no controller at"),
        (&["drain", "ui/mgmt01"], "no controller at"),
    ] {
        let output = bed.lb(arguments)?;
        let error = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(1), "{arguments:?}: {error}");
        ensure!(error.starts_with("lb: ") && error.contains(wanted), "{arguments:?}: {error}");
    }
    Ok(())
}

#[test]
fn backends_that_do_not_exist_are_refused() -> Result<()> {
    let bed = Bed::new(LB, "native", 1)?;
    for target in ["ui/mgmt09", "nothing/mgmt01"] {
        for command in ["drain", "maint", "ready"] {
            let output = bed.lb(&[command, target])?;
            let error = String::from_utf8(output.stderr)?;
            ensure!(output.status.code() == Some(2), "{error}");
            ensure!(error.contains("no backend") && error.contains(target), "{error}");
        }
    }
    Ok(())
}

#[test]
fn events_tell_what_happened_and_are_followed_until_the_controller_stops() -> Result<()> {
    let mut bed = Bed::new(LB, "native", 2)?;
    let mut command = bed.lb_command(&["events", "-f", "--json"]);
    let follower = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    bed.lb_ok(&["drain", "ui/mgmt02"])?;
    bed.kill_backend("mgmt01")?;
    bed.wait_for_state("mgmt01", "down")?;
    let text = bed.lb_ok(&["events"])?;
    let down = text.lines().find(|line| line.contains("  WARN   down  "));
    let said = "backend=mgmt01  detail=\"connection refused\"  service=ui";
    ensure!(down.is_some_and(|line| line.ends_with(said)), "{text}");

    bed.stop_controller(Signal::SIGTERM)?;
    let output = follower.wait_with_output()?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(output.stderr == b"lb: the controller has stopped\n", "{output:?}");
    let events: Vec<Value> = String::from_utf8(output.stdout)?
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    for (message, backend) in [("operator: drain", "mgmt02"), ("down", "mgmt01")] {
        let is_it = |event: &Value| event["message"] == message && event["backend"] == backend;
        ensure!(events.iter().filter(|event| is_it(event)).count() == 1, "{message}: {events:?}");
    }
    let refused = bed.lb(&["events"])?;
    ensure!(String::from_utf8(refused.stderr)?.starts_with("lb: no controller at "));
    Ok(())
}

#[test]
fn every_list_shows_what_there_is() -> Result<()> {
    let bed = Bed::new(LB, "native", 2)?;
    let mut held = bed.open()?;
    let name = held.request()?;

    let services = bed.json(&["list", "services", "--json"])?;
    ensure!(services[0]["name"] == "ui" && services[0]["bind"][0] == "10.91.0.100:8080");
    ensure!(services[0]["flows"] == 1 && services[0]["new_flows"] == 1, "{services}");
    ensure!(services[0]["backends_up"] == 2 && services[0]["backends_total"] == 2, "{services}");

    let flows = bed.json(&["list", "flows", "--json"])?;
    ensure!(flows[0]["backend"] == name.as_str() && flows[0]["state"] == "established", "{flows}");
    let client = flows[0]["client"].as_str().context("client")?;
    ensure!(client.starts_with("10.91.0.1:"), "{flows}");
    let nat = flows[0]["nat"].as_str().context("nat")?;
    ensure!(nat.starts_with("10.91.0.10:"), "{flows}");
    for (filter, count) in [
        (&["--service", "ui"][..], 1),
        (&["--backend", &name], 1),
        (&["--client", "10.91.0.0/24"], 1),
        (&["--client", "192.0.2.1"], 0),
        (&["--state", "established"], 1),
        (&["--state", "syn"], 0),
        (&["--limit", "0"], 0),
    ] {
        let flows = bed.json(&[&["list", "flows", "--json"], filter].concat())?;
        ensure!(flows.as_array().map(Vec::len) == Some(count), "{filter:?}: {flows}");
    }

    let maps = bed.json(&["list", "maps", "--json"])?;
    let maps = maps.as_array().context("maps")?;
    let flows = maps.iter().find(|map| map["name"] == "FLOWS").context("FLOWS")?;
    ensure!(flows["type"] == "hash" && flows["entries"] == 2, "{flows}");
    ensure!(flows["bytes"].as_u64() > Some(131_072 * 72), "{flows}");

    for what in ["services", "backends", "flows", "rings", "reasons", "maps"] {
        let table = bed.lb_ok(&["list", what])?;
        ensure!(table.lines().count() >= 2, "{table}");
        ensure!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
    }
    let status = bed.lb_ok(&["status"])?;
    ensure!(
        status.contains("running, process") && status.contains("eth0, native mode"),
        "{status}"
    );
    Ok(())
}

#[test]
fn only_those_whose_the_socket_is_change_anything() -> Result<()> {
    /// A group that nobody is in.
    const GROUP: u32 = 54_321;
    let bed = Bed::new(LB, "native", 1)?;
    let directory = bed.socket();
    let directory = directory.parent().context("a directory")?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(bed.config(), fs::Permissions::from_mode(0o644))?;
    // As somebody might who wants to look from everywhere.
    fs::set_permissions(bed.socket(), fs::Permissions::from_mode(0o666))?;
    std::os::unix::fs::chown(bed.socket(), None, Some(GROUP))?;
    let program = directory.join("lb");
    variant::copy(LB, &program)?;
    let nobody = |groups: &[&str], arguments: &[&str]| -> Result<(bool, String)> {
        let mut command = bed.balancer.command("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534"]).args(groups).arg(&program);
        let output = command.arg("-c").arg(bed.config()).args(arguments).output()?;
        Ok((output.status.success(), String::from_utf8(output.stderr)?))
    };
    let events = nobody(&["--clear-groups"], &["events"])?;
    ensure!(events.0, "{events:?}");
    for request in [&["reload"][..], &["drain", "ui/mgmt01"]] {
        let (done, said) = nobody(&["--clear-groups"], request)?;
        ensure!(!done && said.contains("user 65534 (process") && said.contains("54321"), "{said}");
        let (done, said) = nobody(&["--groups", "54321"], request)?;
        ensure!(done, "{said}");
    }
    ensure!(bed.shown("mgmt01")?["state"] == "drain");
    let events = bed.lb_ok(&["events"])?;
    ensure!(events.contains("asked for by user 65534 (process"), "{events}");
    Ok(())
}

#[test]
fn what_a_restart_does_not_change_is_said() -> Result<()> {
    let mut bed = Bed::new(LB, "native", 1)?;
    let text = fs::read_to_string(bed.config())?.replace("flows = 65536", "flows = 70000");
    fs::write(bed.config(), text)?;
    let said = bed.lb_ok(&["diff"])?;
    ensure!(said.contains("65536 -> 70000 (takes `lb detach`"), "{said}");
    // It hinders nothing else.
    ensure!(bed.lb_ok(&["reload"])?.contains("until then it stays as it is"));
    bed.stop_controller(Signal::SIGTERM)?;
    bed.start_controller(&[])?;
    let log = fs::read_to_string(bed.log())?;
    ensure!(log.contains("limits.flows is 70000") && log.contains("made for 65536"), "{log}");
    Ok(())
}

#[test]
fn flows_of_what_there_is_not_are_an_error() -> Result<()> {
    let bed = Bed::new(LB, "native", 1)?;
    let _held = bed.open()?;
    for (filter, name) in
        [("--service", "nosuch"), ("--backend", "nosuch"), ("--backend", "nosuch/mgmt01")]
    {
        let output = bed.lb(&["list", "flows", filter, name])?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && error.contains("nosuch"), "{output:?}");
    }
    for backend in ["mgmt01", "ui/mgmt01"] {
        let shown = bed.json(&["list", "flows", "--backend", backend, "--json"])?;
        ensure!(shown.as_array().is_some_and(|flows| flows.len() == 1), "{shown}");
    }
    Ok(())
}
