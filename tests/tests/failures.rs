//! What fails inside: killed in the middle of an update, pins that go, an interface that goes and comes back, a full disk
//! under the log, backends that answer nonsense. Each has an outcome, and an event that says so.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        process::ExitStatusExt,
    },
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lb_tests::{
    bed::{Bed, SERVICE},
    client,
    wait::wait_until,
};
use nix::{
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};
use serde_json::Value;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");

/// `lb run` under strace, which does something at its calls of `bpf`.
fn traced(bed: &Bed, arguments: &[&str]) -> Command {
    let mut command = bed.balancer.command("strace");
    command.args(["-f", "-qq", "-e", "trace=bpf"]).args(arguments);
    command.arg(LB).arg("run").arg("-c").arg(bed.config());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[test]
fn a_controller_that_is_killed_in_the_middle_of_any_update_leaves_what_the_next_one_mends()
-> Result<()> {
    /// How many moments are tried, up to the last update of a start.
    const MOMENTS: usize = 8;
    let mut bed = Bed::new(LB, "native", 3)?;
    let mut held = client::held(&bed, 9)?;
    let changed = "weight = 5\n[[service]]\nname = \"other\"\nbind = [\"10.91.0.100:9000\"]\n\
                   [[service.backend]]\nname = \"a\"\naddress = \"10.91.0.101:8080\"\n";
    bed.stop_controller(Signal::SIGTERM)?;

    // How many calls a start makes that changes something.
    bed.write_config(changed)?;
    let trace = bed.config().with_extension("trace");
    let mut child = traced(&bed, &["-o", trace.to_str().context("UTF-8")?]).spawn()?;
    wait_until("the traced controller answers", || {
        let status = bed.json(&["status", "--json"]);
        Ok(status.is_ok_and(|status| !status["controller"].is_null()))
    })?;
    let calls = fs::read_to_string(&trace)?;
    let status = bed.json(&["status", "--json"])?;
    let process = status["controller"]["pid"].as_u64().context("a process")?.to_string();
    Command::new("kill").args(["-TERM", &process]).status()?;
    child.wait()?;
    let of_main = calls.lines().filter(|line| line.starts_with(&process)).count();
    ensure!(of_main > 100, "{of_main} calls");
    let updates = ["BPF_MAP_UPDATE_ELEM", "BPF_LINK_UPDATE", "BPF_OBJ_PIN", "BPF_MAP_DELETE_ELEM"];
    let places: Vec<usize> = calls
        .lines()
        .filter(|line| line.starts_with(&process))
        .enumerate()
        .filter(|(_, line)| updates.iter().any(|update| line.contains(update)))
        .map(|(number, _)| number + 1)
        .collect();
    ensure!(places.len() > MOMENTS, "{} updates", places.len());

    for moment in 0..MOMENTS {
        // From the old configuration to the new one, or back.
        bed.write_config(if moment % 2 == 0 { "" } else { changed })?;
        let place = places[places.len() * (moment + 1) / (MOMENTS + 1)];
        let inject = format!("inject=bpf:signal=SIGKILL:when={place}");
        let output = traced(&bed, &["-o", "/dev/null", "-e", &inject]).spawn()?.wait()?;
        ensure!(output.signal() == Some(9) || output.code() == Some(137), "{place}: {output}");
        for (name, connection) in &mut held {
            ensure!(connection.request()? == *name, "call {place}: a connection moved");
        }
        bed.request().with_context(|| format!("call {place}"))?;
        bed.start_controller(&[])?;
        bed.wait_for_up(3)?;
        let rings = bed.json(&["list", "rings", "--json"])?;
        let services = if moment % 2 == 0 { 1 } else { 2 };
        ensure!(rings.as_array().is_some_and(|rings| rings.len() == services), "{rings}");
        for (name, connection) in &mut held {
            ensure!(connection.request()? == *name, "call {place}: a connection moved");
        }
        for _ in 0..10 {
            bed.request().with_context(|| format!("call {place}"))?;
        }
        bed.stop_controller(Signal::SIGTERM)?;
    }
    Ok(())
}

#[test]
fn forwarding_outlives_a_file_system_that_is_unmounted_and_it_is_told() -> Result<()> {
    outlives_unmounting(None)
}

#[test]
fn it_is_told_also_where_the_controller_may_not_go_there() -> Result<()> {
    outlives_unmounting(Some("nobody"))
}

fn outlives_unmounting(user: Option<&str>) -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 2)?;
    bed.write_config("")?;
    let directory = bed.config().with_file_name("bpf");
    fs::create_dir(&directory)?;
    let mount = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&directory).status()?;
    ensure!(mount.success());
    let old = format!("pin_path = \"{}\"", bed.pins().display());
    let text = fs::read_to_string(bed.config())?;
    ensure!(text.contains(&old), "{text}");
    let new = format!("pin_path = \"{}/lb\"", directory.display());
    let mut text = text.replace(&old, &new);
    if let Some(user) = user {
        text = format!("user = \"{user}\"\n{text}").replace("/lb.sock", "/run/lb.sock");
        let home = bed.config().parent().context("a directory")?.to_path_buf();
        fs::set_permissions(&home, fs::Permissions::from_mode(0o711))?;
        // First in a directory that is root's.
        fs::create_dir(home.join("run"))?;
        fs::write(bed.config(), &text)?;
        let said = String::from_utf8(bed.lb(&["run"])?.stderr)?;
        ensure!(said.contains("(nobody must be allowed to write to its directory)"), "{said}");
        fs::remove_dir(home.join("run"))?;
    }
    fs::write(bed.config(), text)?;
    let result = (|| {
        bed.start_controller(&[])?;
        bed.wait_for_up(2)?;
        let mut held = client::held(&bed, 4)?;
        ensure!(Command::new("umount").arg("-l").arg(&directory).status()?.success());
        bed.wait_for_event("the pins at")?;
        let status = bed.lb(&["status"])?;
        ensure!(!status.status.success(), "{status:?}");
        let said = String::from_utf8_lossy(&status.stdout);
        ensure!(said.contains("controller  running") && said.contains("eth0, native"), "{said}");
        for (name, connection) in &mut held {
            ensure!(connection.request()? == *name);
        }
        bed.request()?;
        bed.stop_controller(Signal::SIGTERM)?;
        let log = fs::read_to_string(bed.log())?;
        ensure!(log.contains("stopped; the data plane isn't whole: the pins at"), "{log}");
        Ok(())
    })();
    // If it is still mounted.
    let _: std::io::Result<_> =
        Command::new("umount").arg("-l").arg(&directory).stderr(Stdio::null()).status();
    result
}

#[test]
fn an_interface_that_goes_and_comes_back_is_served_again() -> Result<()> {
    let bed = Bed::new(LB, "native", 2)?;
    bed.request()?;
    for times in 1..=3 {
        bed.balancer.ip(&["link", "del", "eth0"])?;
        wait_until("it is told", || {
            let events = bed.lb_ok(&["events"])?;
            Ok(events.matches("no such interface: eth0").count() >= times)
        })?;
        bed.reconnect_balancer()?;
        wait_until("it is served again", || Ok(bed.request_within_a_second().is_ok()))?;
        let events = bed.lb_ok(&["events"])?;
        ensure!(events.contains("over: no such interface: eth0"), "{events}");
    }
    // Down and up again.
    let mut held = client::held(&bed, 4)?;
    bed.balancer.ip(&["link", "set", "eth0", "down"])?;
    bed.balancer.ip(&["link", "set", "eth0", "up"])?;
    wait_until("it is served again", || Ok(bed.request_within_a_second().is_ok()))?;
    for (name, connection) in &mut held {
        ensure!(connection.request()? == *name);
    }
    Ok(())
}

#[test]
fn an_interface_made_anew_while_no_controller_ran_is_served_by_the_next_one() -> Result<()> {
    let mut bed = Bed::new(LB, "native", 2)?;
    bed.request()?;
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        bed.stop_controller(signal)?;
        bed.balancer.ip(&["link", "del", "eth0"])?;
        let status = bed.lb_ok(&["status"])?;
        ensure!(status.contains("no program is attached: nothing is forwarded"), "{status}");
        bed.reconnect_balancer()?;
        bed.start_controller(&[])?;
        bed.wait_for_up(2)?;
        wait_until("it is served again", || Ok(bed.request_within_a_second().is_ok()))?;
    }
    // And without a link it says so.
    bed.balancer.ip(&["link", "set", "eth0", "down"])?;
    wait_until("it is shown", || Ok(bed.lb_ok(&["status"])?.contains("eth0, native mode: no link")))
}

#[test]
fn a_full_disk_under_the_log_stops_nothing() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 2)?;
    bed.write_config("")?;
    let full =
        || Ok::<_, std::io::Error>(Stdio::from(fs::File::options().write(true).open("/dev/full")?));
    let mut command = bed.balancer.command(LB);
    command.args(["run", "-c"]).arg(bed.config()).stdin(Stdio::null());
    bed.spawn_controller(command.stdout(full()?).stderr(full()?))?;
    bed.wait_for_up(2)?;
    bed.request()?;
    bed.lb_ok(&["reload"])?;
    bed.kill_backend("mgmt02")?;
    bed.wait_for_state("mgmt02", "down")?;
    ensure!(bed.has_told("down")?, "events have it nevertheless");
    bed.wait_for_event("lines of the log are lost")?;
    ensure!(bed.stop_controller(Signal::SIGTERM)?.success());
    Ok(())
}

#[test]
fn a_file_that_changes_is_applied_if_it_is_watched() -> Result<()> {
    let bed = Bed::new(LB, "native", 2)?;
    let with = |watch: bool, more: &str| -> Result<()> {
        bed.write_config(more)?;
        let text = fs::read_to_string(bed.config())?;
        // As an editor does.
        let new = bed.config().with_extension("new");
        fs::write(&new, format!("watch = {watch}\n{text}"))?;
        Ok(fs::rename(new, bed.config())?)
    };
    with(true, "")?;
    bed.lb_ok(&["reload"])?;
    with(true, "weight = 7\n")?;
    wait_until("it is applied", || Ok(bed.shown("mgmt02")?["weight"] == 7))?;
    with(true, "weight = 700\n")?;
    bed.wait_for_event("the configuration stays as it was")?;
    ensure!(bed.shown("mgmt02")?["weight"] == 7);
    with(false, "weight = 8\n")?;
    wait_until("it is applied", || Ok(bed.shown("mgmt02")?["weight"] == 8))?;
    with(false, "weight = 9\n")?;
    let would = bed.json(&["diff", "--json"])?;
    ensure!(would[0]["key"] == "weight" && would[0]["to"] == "9", "{would}");
    ensure!(bed.lb_ok(&["diff"])? == "~ backend ui/mgmt02 weight: 8 -> 9\n");
    bed.lb_ok(&["reload"])?;
    ensure!(bed.lb_ok(&["diff"])? == "nothing would change\n");
    Ok(())
}

#[test]
fn a_file_is_watched_through_links_and_in_directories_that_are_replaced() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 2)?;
    bed.write_config("")?;
    let text = format!("watch = true\n{}", fs::read_to_string(bed.config())?);
    let version = |directory: &str, weight: u32| -> Result<PathBuf> {
        let directory = bed.config().with_file_name(directory);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("lb.toml"), format!("{text}weight = {weight}\n"))?;
        Ok(directory)
    };
    // As in a container: a link to a link, which is replaced.
    let (first, second) = (version("first", 1)?, version("second", 2)?);
    let current = bed.config().with_file_name("current");
    symlink(&first, &current)?;
    fs::remove_file(bed.config())?;
    symlink(current.join("lb.toml"), bed.config())?;
    bed.start_controller(&[])?;
    let weight_becomes = |bed: &Bed, weight: u32| {
        wait_until("it is applied", || Ok(bed.shown("mgmt02")?["weight"] == weight))
    };
    let next = bed.config().with_file_name("next");
    symlink(&second, &next)?;
    fs::rename(&next, &current)?;
    weight_becomes(&bed, 2)?;
    // In the directory that is linked to now.
    fs::write(second.join("lb.toml"), format!("{text}weight = 3\n"))?;
    weight_becomes(&bed, 3)?;
    // That directory gives way to another of the same name.
    fs::rename(&second, bed.config().with_file_name("old"))?;
    let second = bed.config().with_file_name("second");
    fs::create_dir(&second)?;
    fs::write(second.join("lb.toml"), format!("{text}weight = 4\n"))?;
    weight_becomes(&bed, 4)?;

    // What isn't a file can't keep the controller waiting.
    fs::remove_file(bed.config())?;
    mkfifo(&bed.config(), Mode::S_IRWXU)?;
    let is_told = || Ok(fs::read_to_string(bed.log())?.contains("it is no regular file"));
    wait_until("it is told", is_told)?;
    let socket = bed.socket();
    let mut command = bed.balancer.command(LB);
    let output = command.args(["reload", "--socket"]).arg(&socket).output()?;
    ensure!(output.status.code() == Some(2), "{output:?}");
    bed.request().map(drop)
}

/// What a server says to whoever connects, and whether it goes on and on.
type Answer = (&'static str, &'static [u8], bool);

#[test]
fn backends_that_hang_answer_nonsense_or_never_end_are_down_and_cost_nothing() -> Result<()> {
    const ANSWERS: [Answer; 5] = [
        ("hangs", b"", false),
        ("garbage", b"\x00\xff\x17nonsense\r\n\r\n", false),
        ("half", b"HTTP/1.1 200 OK\r\nContent-", false),
        ("endless-header", b"X-More: and more\r\n", true),
        ("endless-status", b"HTTP/1.1 ", true),
    ];
    let mut bed = Bed::without_controller(LB, "native", 1)?;
    let over = Arc::new(AtomicBool::new(false));
    let mut text = format!(
        "[[service]]\nname = \"ui\"\nbind = [\"{SERVICE}\"]\n[service.check]\ninterval = \"200ms\"\n\
         timeout = \"500ms\"\n"
    );
    for (number, (name, answer, is_endless)) in (0..).zip(ANSWERS) {
        let port: u16 = 8100 + number;
        text +=
            &format!("[[service.backend]]\nname = \"{name}\"\naddress = \"10.91.0.101:{port}\"\n");
        let over = Arc::clone(&over);
        let listener = client::within(bed.backend_namespace("mgmt01")?, move || {
            TcpListener::bind(("0.0.0.0", port))
        })?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                thread::spawn(move || serve(stream, answer, is_endless));
            }
        });
    }
    bed.write_config_of(&text)?;
    bed.start_controller(&[])?;
    for (name, ..) in ANSWERS {
        bed.wait_for_state(name, "down")?;
    }
    let before = bed.controller_memory()?;
    thread::sleep(Duration::from_secs(3));
    let grown = bed.controller_memory()?.saturating_sub(before);
    ensure!(grown < 8 << 10, "the controller took {grown} KB more");
    for (name, ..) in ANSWERS {
        let shown = bed.shown(name)?;
        let detail = shown["check"]["detail"].as_str().context("a detail")?.to_owned();
        println!("{name}: {detail}");
        let wanted =
            ["timeout after 500ms", "isn't HTTP", "closed without", "message head is too large"];
        ensure!(wanted.iter().any(|wanted| detail.contains(wanted)), "{name}: {detail}");
    }
    over.store(true, Ordering::Relaxed);
    let status: Value = bed.json(&["status", "--json"])?;
    ensure!(!status["controller"].is_null());
    Ok(())
}

fn serve(mut stream: std::net::TcpStream, answer: &[u8], is_endless: bool) {
    let mut request = [0; 1024];
    // Whoever goes is gone.
    let Ok(_) = stream.read(&mut request) else { return };
    if is_endless {
        let start: &[u8] = if answer.starts_with(b"X") { b"HTTP/1.1 200 OK\r\n" } else { b"" };
        let mut result = stream.write_all(start);
        while result.is_ok() {
            result = stream.write_all(answer);
        }
    } else if stream.write_all(answer).is_ok() && answer.is_empty() {
        // Until the other end closes.
        let _: std::io::Result<usize> = stream.read(&mut request);
    }
}
