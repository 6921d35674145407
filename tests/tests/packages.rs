//! What is shipped, as operators install it: the Debian package under a real systemd, and the container image with no
//! more privileges than it says it needs.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, Result, ensure};
use lb_tests::{bed::Bed, client, podman::Podman, wait::wait_until};
use serde_json::Value;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");
const BACKENDS: u8 = 2;
/// What systemd may say at most of how exposed the service is.
const MOST_EXPOSED: f64 = 3.0;
/// Numbers of the capabilities that the controller keeps: of packets of its own, networks, performance monitoring, BPF.
const KEPT: [u32; 4] = [13, 12, 38, 39];

/// Makes what is shipped, once, and returns where it is.
fn dist() -> Result<&'static Path> {
    static MADE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let make = || -> Result<PathBuf> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("a workspace")?;
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(root).args(["run", "--quiet", "--locked", "--package", "xtask", "--"]);
        let output = command.args(["dist", "--debug"]).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "cargo xtask dist: {error}");
        let said = String::from_utf8(output.stdout)?;
        let last = said.lines().last().context("it says nothing")?;
        Ok(Path::new(last).parent().context("a directory")?.to_path_buf())
    };
    match MADE.get_or_init(|| make().map_err(|error| format!("{error:#}"))) {
        Ok(path) => Ok(path),
        Err(error) => anyhow::bail!("{error}"),
    }
}

fn package() -> Result<PathBuf> {
    let files = fs::read_dir(dist()?)?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut packages = files.filter(|path| path.extension().is_some_and(|end| end == "deb"));
    packages.next().context("no package")
}

/// A small Debian with systemd.
fn debian(directory: &Path) -> Result<PathBuf> {
    let root = directory.join("debian");
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=minbase"]);
    command.arg("--include=systemd,systemd-sysv,dbus,passwd").arg("bookworm").arg(&root);
    let output = command.output().context("mmdebstrap")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(root)
}

/// Capabilities that a process of the host has, and those that it could get.
fn capabilities(process: &str) -> Result<[u64; 2]> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let mask = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        Ok(u64::from_str_radix(line.context(name.to_owned())?.trim(), 16)?)
    };
    ensure!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
    Ok([mask("CapEff:")?, mask("CapBnd:")?])
}

#[test]
fn the_package_runs_under_systemd_with_few_privileges() -> Result<()> {
    let package = package()?;
    let bed = Bed::without_controller(LB, "native", BACKENDS)?;
    let podman = Podman::new()?;
    let root = debian(podman.directory())?;
    fs::copy(&package, root.join("lb.deb"))?;
    let network = Podman::network(&bed.balancer);
    // As systemd mounts it: nobody but root gets there.
    let pins = Mount::bpf(podman.directory().join("bpf"))?;
    let volume = format!("--volume={}:/sys/fs/bpf", pins.0.display());
    let root = root.to_str().context("UTF-8")?;
    podman.run(&[
        "run",
        "--detach",
        "--name=host",
        "--systemd=always",
        "--privileged",
        "--network",
        &network,
        &volume,
        "--rootfs",
        root,
        "/sbin/init",
    ])?;
    let run = |arguments: &[&str]| podman.exec_ok("host", arguments);
    wait_until("systemd runs", || {
        let state = podman.exec("host", &["systemctl", "is-system-running"])?;
        Ok(String::from_utf8_lossy(&state.stdout).trim() == "running")
    })?;
    run(&["dpkg", "--install", "/lb.deb"])?;
    // What systemd thinks of the unit.
    let verify = podman.exec("host", &["systemd-analyze", "verify", "--man=no", "lb.service"])?;
    ensure!(verify.status.success() && verify.stderr.is_empty(), "{verify:?}");
    let security = run(&["systemd-analyze", "security", "--offline=true", "lb.service"])?;
    let exposure =
        security.lines().find_map(|line| line.split_once("exposure level for lb.service: "));
    let exposure: f64 = exposure
        .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
        .with_context(|| security.clone())?;
    ensure!(exposure <= MOST_EXPOSED, "exposure {exposure}: {security}");

    // Without a configuration it isn't started, and with a wrong one it fails at once.
    run(&["systemctl", "start", "lb"])?;
    let state = podman.exec("host", &["systemctl", "is-active", "lb"])?;
    ensure!(state.stdout == b"inactive\n", "{state:?}");
    bed.write_config("")?;
    let text = fs::read_to_string(bed.config())?;
    let socket = format!("socket = \"{}\"\n", bed.socket().display());
    ensure!(text.contains(&socket), "{text}");
    let text = format!("user = \"lb\"\n{}", text.replace(&socket, ""));
    let config = Path::new(root).join("etc/lb/lb.toml");
    fs::write(&config, text.replace("native", "natural"))?;
    ensure!(!podman.exec("host", &["systemctl", "start", "lb"])?.status.success());
    run(&["systemctl", "stop", "lb"])?;
    fs::write(&config, &text)?;
    run(&["systemctl", "start", "lb"])?;

    let up = || -> Result<bool> {
        let shown = run(&["lb", "list", "backends", "--json"])?;
        let backends: Value = serde_json::from_str(&shown)?;
        let backends = backends.as_array().context("an array")?;
        Ok(backends.iter().filter(|backend| backend["state"] == "up").count()
            == usize::from(BACKENDS))
    };
    wait_until("the backends are up", up)?;
    let mut held = client::held(&bed, 6)?;
    let main = || -> Result<String> {
        // The process's number on the host is in the host's own list.
        let shown = run(&["systemctl", "show", "--property=MainPID", "--value", "lb"])?;
        Ok(shown.trim().to_owned())
    };
    let first = main()?;
    let status = run(&["cat", &format!("/proc/{first}/status")])?;
    for name in ["CapEff", "CapPrm", "CapBnd"] {
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:\t")));
        let mask = u64::from_str_radix(line.context("a mask")?, 16)?;
        let kept = KEPT.iter().fold(0, |mask, number| mask | 1 << number);
        ensure!(mask == kept, "{name}: {mask:x}, wanted {kept:x}");
    }
    ensure!(!status.contains("Uid:\t0") && status.contains("NoNewPrivs:\t1"), "{status}");

    fs::write(&config, text.replace("[service.check]", "[service.check]\nrise = 1"))?;
    run(&["systemctl", "reload", "lb"])?;
    ensure!(run(&["lb", "events"])?.contains("check.rise: 2 -> 1"));
    run(&["systemctl", "restart", "lb"])?;
    ensure!(main()? != first);
    // An upgrade restarts it, but not where the new version couldn't start.
    let before = main()?;
    fs::write(&config, text.replace("native", "natural"))?;
    let install = ["dpkg", "--install", "/lb.deb"];
    let upgraded = podman.exec("host", &install)?;
    let said = String::from_utf8_lossy(&upgraded.stderr).into_owned();
    ensure!(upgraded.status.success() && said.contains("isn't started in place of"), "{said}");
    ensure!(said.contains("natural") && main()? == before, "{said}");
    fs::write(&config, &text)?;
    run(&install)?;
    ensure!(main()? != before);
    // Whoever dies is started again.
    run(&["systemctl", "kill", "--signal=KILL", "lb"])?;
    let again = |before: &str| {
        wait_until("it is started again", || {
            let state = podman.exec("host", &["systemctl", "is-active", "lb"])?;
            Ok(state.stdout == b"active\n" && ![before, "0"].contains(&&*main()?))
        })
    };
    again(&main()?)?;
    // So is who hangs.
    let settings = Path::new(root).join("etc/systemd/system/lb.service.d");
    fs::create_dir_all(&settings)?;
    fs::write(settings.join("watchdog.conf"), "[Service]\nWatchdogSec=2s\n")?;
    run(&["systemctl", "daemon-reload"])?;
    run(&["systemctl", "restart", "lb"])?;
    let hanging = main()?;
    run(&["systemctl", "kill", "--signal=STOP", "lb"])?;
    again(&hanging)?;
    for (name, connection) in &mut held {
        ensure!(connection.request()? == *name, "it moved");
    }
    wait_until("the backends are up", up)?;
    bed.request()?;

    for file in ["usr/share/man/man1/lb.1.gz", "usr/share/bash-completion/completions/lb"] {
        ensure!(Path::new(root).join(file).exists(), "no {file}");
    }
    run(&["dpkg", "--remove", "lb"])?;
    ensure!(!Path::new(root).join("usr/bin/lb").exists());
    let own = bed.pins().file_name().context("a name")?;
    ensure!(!pins.0.join(own).exists(), "it leaves pins behind");
    podman.run(&["rm", "--force", "--time=1", "host"])?;
    Ok(())
}

/// A BPF file system of its own, which only root may enter.
struct Mount(PathBuf);

impl Mount {
    fn bpf(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path)?;
        let mut mount = Command::new("mount");
        let status = mount.args(["-t", "bpf", "-o", "mode=0700", "bpf"]).arg(&path).status()?;
        ensure!(status.success(), "mount: {status}");
        Ok(Self(path))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        match Command::new("umount").arg("-l").arg(&self.0).status() {
            Ok(status) if status.success() => {}
            other => eprintln!("umount: {other:?}"),
        }
    }
}

/// Runs the image as `lb run`, with those arguments of podman's, and has it serve.
fn serve_from_image(arguments: &[&str], is_confined: bool) -> Result<()> {
    let image = dist()?.join("lb.oci.tar");
    let bed = Bed::without_controller(LB, "native", BACKENDS)?;
    bed.write_config("")?;
    let podman = Podman::new()?;
    podman.run(&["load", "--quiet", "--input", image.to_str().context("UTF-8")?])?;
    let network = Podman::network(&bed.balancer);
    let directory = bed.config().parent().context("a directory")?.display().to_string();
    let volume = format!("--volume={directory}:{directory}");
    let config = bed.config().display().to_string();
    let system_calls = format!("--security-opt=seccomp={}", podman.with_bpf()?.display());
    let mut command = vec!["run", "--detach", "--name=lb", "--network", &network, &volume];
    command.extend(["--volume=/sys/fs/bpf:/sys/fs/bpf", &system_calls]);
    command.extend(arguments);
    command.extend(["localhost/lb:0.1.0", "run", "-c", &config]);
    podman.run(&command)?;
    let logs = || {
        let output = podman.command().args(["logs", "lb"]).output();
        output.map_or_else(
            |error| error.to_string(),
            |output| String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    };
    let started = wait_until("the backends are up", || {
        let is_up = |name: &&str| bed.shown(name).is_ok_and(|shown| shown["state"] == "up");
        Ok(["mgmt01", "mgmt02"].iter().all(is_up))
    });
    started.with_context(logs)?;
    let pid = podman.run(&["inspect", "--format={{.State.Pid}}", "lb"])?;
    let kept = KEPT.iter().fold(0, |mask, number| mask | 1 << number);
    let [effective, bounding] = capabilities(pid.trim())?;
    ensure!(
        effective == kept && (!is_confined || bounding & !kept == 0),
        "{effective:x} {bounding:x}"
    );

    // What the lab shows.
    let mut held = client::held(&bed, 20)?;
    ensure!(held.iter().any(|(name, _)| name == "mgmt01"));
    bed.lb_ok(&["drain", "ui/mgmt01"])?;
    for _ in 0..10 {
        ensure!(bed.request()? == "mgmt02", "it drains");
    }
    for (name, connection) in &mut held {
        ensure!(connection.request()? == *name);
    }
    bed.lb_ok(&["ready", "ui/mgmt01"])?;
    bed.kill_backend("mgmt02")?;
    bed.wait_for_state("mgmt02", "down")?;
    for _ in 0..10 {
        ensure!(bed.request()? == "mgmt01", "mgmt02 is dead");
    }
    bed.start_backend("mgmt02")?;
    bed.wait_for_up(BACKENDS.into())?;
    bed.write_config("weight = 3\n")?;
    ensure!(bed.lb_ok(&["reload"])?.contains("weight: 1 -> 3"));
    podman.run(&["stop", "--time=10", "lb"])?;
    let exit = podman.run(&["inspect", "--format={{.State.ExitCode}}", "lb"])?;
    ensure!(exit.trim() == "0", "exit status {exit}: {}", logs());
    bed.request()?;
    podman.run(&["start", "lb"])?;
    bed.wait_for_up(BACKENDS.into())
}

#[test]
fn the_image_runs_privileged() -> Result<()> {
    serve_from_image(&["--privileged"], false)
}

#[test]
fn the_image_runs_with_four_capabilities_on_a_read_only_file_system() -> Result<()> {
    let arguments = [
        "--cap-drop=all",
        "--cap-add=BPF,NET_ADMIN,PERFMON,NET_RAW",
        "--security-opt=no-new-privileges",
        "--read-only",
    ];
    serve_from_image(&arguments, true)
}
