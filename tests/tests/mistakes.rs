//! What operators do by mistake while a balancer serves: it goes on.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Result, ensure};
use lb_tests::{
    bed::{Bed, SERVICE},
    pins::pin_directory,
    wait::{suspend, wait_until},
};
use lb_userspace::dataplane::Pins;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");

/// An `lb run` that fails, with what it says.
fn failing(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    Ok(String::from_utf8(output.stderr)?)
}

/// Another balancer in the same namespace, with pins of its own, which go with it.
struct Other {
    controller: Child,
    pins: PathBuf,
}

impl Other {
    fn start(bed: &Bed, interface: &str) -> Result<Self> {
        let pins = pin_directory()?;
        let config = bed.config().with_file_name("other.toml");
        let service = "[[service]]\nname = \"other\"\nbind = [\"10.91.0.100:9999\"]\n[[service.backend]]\nname = \
                       \"a\"\naddress = \"10.91.0.101:8080\"\n";
        let socket = config.with_extension("sock");
        fs::write(
            &config,
            format!(
                "interfaces = [\"{interface}\"]\nadmin = \"\"\nsocket = \"{}\"\npin_path = \"{}\"\n[limits]\nflows \
                 = 65536\n{service}",
                socket.display(),
                pins.display()
            ),
        )?;
        let mut command = bed.balancer.command(LB);
        let controller = command.args(["run", "-c"]).arg(&config).stderr(Stdio::null()).spawn()?;
        let other = Self { controller, pins };
        wait_until("the other one answers", || Ok(socket.exists()))?;
        wait_until("it is attached", || {
            Ok(bed.balancer.ip(&["link", "show", interface])?.contains("xdp"))
        })?;
        Ok(other)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It may have ended already.
        let _: std::io::Result<()> = self.controller.kill();
        let _: std::io::Result<std::process::ExitStatus> = self.controller.wait();
        if let Err(error) = Pins::new(&self.pins).remove() {
            eprintln!("removing the other pins: {error}");
        }
    }
}

#[test]
fn a_start_that_cannot_attach_leaves_what_was_there() -> Result<()> {
    let mut bed = Bed::new(LB, "native", 2)?;
    bed.request()?;
    bed.balancer.ip(&["link", "add", "more0", "type", "veth", "peer", "name", "more1"])?;
    bed.balancer.ip(&["link", "set", "more0", "up"])?;
    let _other = Other::start(&bed, "more0")?;
    bed.stop_controller(Signal::SIGTERM)?;
    let before = bed.json(&["list", "services", "--json"])?[0]["name"].clone();
    let text = fs::read_to_string(bed.config())?;
    let wrong = text.replace("[\"eth0\"]", "[\"eth0\", \"more0\"]").replace("\"ui\"", "\"shop\"");
    fs::write(bed.config(), wrong)?;
    let said = failing(bed.balancer.command(LB).args(["run", "-c"]).arg(bed.config()))?;
    ensure!(said.contains("more0: another XDP program is attached"), "{said}");
    let after = bed.json(&["list", "services", "--json"])?;
    ensure!(after[0]["name"] == before && after.as_array().map(Vec::len) == Some(1), "{after}");
    for _ in 0..5 {
        bed.request()?;
    }
    fs::write(bed.config(), text)?;
    bed.start_controller(&[])?;
    bed.wait_for_up(2)
}

#[test]
fn a_second_one_with_other_pins_does_not_take_the_socket() -> Result<()> {
    let bed = Bed::new(LB, "native", 1)?;
    let pins = pin_directory()?;
    let mut command = bed.balancer.command(LB);
    command.args(["run", "-c"]).arg(bed.config()).arg("--pin-path").arg(&pins);
    let said = failing(&mut command)?;
    ensure!(said.contains("somebody listens there"), "{said}");
    ensure!(!pins.exists(), "pins are left behind");
    ensure!(bed.lb_ok(&["reload"])?.contains("reloaded"));

    // Nor does anything else that lies there have to give way.
    let precious = bed.config().with_file_name("precious");
    fs::write(&precious, "precious")?;
    let mut command = bed.balancer.command(LB);
    command.args(["run", "-c"]).arg(bed.config()).arg("--pin-path").arg(&pins);
    let said = failing(command.arg("--socket").arg(&precious))?;
    ensure!(said.contains("something else than a socket is there"), "{said}");
    ensure!(fs::read_to_string(&precious)? == "precious");
    Ok(())
}

#[test]
fn detach_is_refused_while_a_controller_runs_also_if_it_hangs() -> Result<()> {
    let bed = Bed::new(LB, "native", 1)?;
    let process = bed.controller_pid()?;
    let detach = || {
        // Without the configuration, and so without the socket.
        let mut command = bed.balancer.command(LB);
        failing(command.arg("--pin-path").arg(bed.pins()).arg("detach"))
    };
    let said = detach()?;
    ensure!(said.contains("controller runs on") && said.contains(&process.to_string()), "{said}");
    suspend(Pid::from_raw(i32::try_from(process)?))?;
    let said = detach();
    kill(Pid::from_raw(i32::try_from(process)?), Signal::SIGCONT)?;
    ensure!(said?.contains("controller runs on"));
    bed.request().map(drop)
}

#[test]
fn what_others_have_pinned_beside_is_left_alone() -> Result<()> {
    let mut bed = Bed::new(LB, "native", 1)?;
    let theirs = bed.pins().join("theirs");
    fs::create_dir(&theirs)?;
    bed.stop_controller(Signal::SIGTERM)?;
    bed.start_controller(&[])?;
    bed.wait_for_up(1)?;
    bed.stop_controller(Signal::SIGTERM)?;
    let detached = bed.lb_ok(&["detach"]);
    let is_left = theirs.exists();
    fs::remove_dir(&theirs)?;
    fs::remove_dir(bed.pins())?;
    ensure!(detached?.contains("detached") && is_left);
    ensure!(bed.client.run("curl", &["-s", "--max-time", "1", SERVICE]).is_err());
    Ok(())
}

#[test]
fn a_second_one_names_the_first_that_is_still_starting() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 1)?;
    bed.write_config("")?;
    let mut command = bed.balancer.command(LB);
    let mut first = command.args(["run", "-c"]).arg(bed.config()).stderr(Stdio::null()).spawn()?;
    let directory = bed.pins().join(format!("v{}", lb_common::abi::VERSION));
    let result = (|| {
        wait_until("it has locked the pins", || Ok(is_locked(&directory)))?;
        let said = failing(bed.balancer.command(LB).args(["run", "-c"]).arg(bed.config()))?;
        ensure!(said.contains(&format!("as process {}", first.id())), "{said}, not {}", first.id());
        Ok(())
    })();
    first.kill()?;
    first.wait()?;
    result?;
    bed.start_controller(&[])?;
    bed.wait_for_up(1)
}

fn is_locked(directory: &Path) -> bool {
    let Ok(file) = fs::File::open(directory) else { return false };
    let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    locked.is_err_and(|(_, error)| error == Errno::EWOULDBLOCK)
}

#[test]
fn a_start_goes_on_with_the_interfaces_that_there_are_where_one_is_away() -> Result<()> {
    let mut bed = Bed::new(LB, "native", 1)?;
    bed.balancer.ip(&["link", "add", "more0", "type", "veth", "peer", "name", "more1"])?;
    bed.balancer.ip(&["link", "set", "more0", "up"])?;
    let text = fs::read_to_string(bed.config())?.replace("[\"eth0\"]", "[\"eth0\", \"more0\"]");
    fs::write(bed.config(), text)?;
    wait_until("the controller knows it", || Ok(bed.lb(&["reload"])?.status.success()))?;
    bed.stop_controller(Signal::SIGKILL)?;
    bed.balancer.ip(&["link", "del", "more0"])?;
    bed.start_controller(&[])?;
    bed.wait_for_up(1)?;
    bed.request()?;
    ensure!(bed.lb_ok(&["events"])?.contains("no such interface: more0"));
    bed.balancer.ip(&["link", "add", "more0", "type", "veth", "peer", "name", "more1"])?;
    wait_until("it is served again", || {
        Ok(bed.balancer.ip(&["link", "show", "more0"])?.contains("xdp"))
    })
}
