//! Making and removing the lab.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use ipnet::Ipv4Net;
use xtask::netns::{self, Namespace, Port, Switch};

use super::{
    place::{
        BACKENDS, BALANCER, CONTROLLER, DIRECTORY, HOST_INTERFACE, PINS, SOCKET, SWITCH,
        backend_namespace, file, lb, namespaces,
    },
    subnet::{address, check_free},
};

/// How long the backends may take to be up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether all of it is there; processes may have been killed.
pub(super) fn is_up() -> bool {
    Path::new("/sys/class/net").join(HOST_INTERFACE).exists()
        && namespaces().iter().all(Namespace::exists)
        && file("lb.toml").exists()
}

/// The addresses of the lab that is up.
pub(super) fn subnet() -> Result<Ipv4Net> {
    let text = fs::read_to_string(file("subnet")).context("the lab isn't up")?;
    Ok(text.trim().parse()?)
}

/// Makes it; nothing of it may be there.
pub(super) fn up(subnet: Ipv4Net) -> Result<()> {
    check_free(subnet)?;
    ensure!(
        !Path::new(PINS).exists(),
        "{PINS} exists: another lb forwards on this host, and the lab would disturb it; if it is a \
         leftover, remove it with `{} detach`",
        lb().display()
    );
    fs::create_dir_all(DIRECTORY)?;
    fs::write(file("subnet"), subnet.to_string())?;
    mount_bpf_file_system()?;
    let result = build(subnet);
    if result.is_err() {
        down()?;
    }
    result
}

fn build(subnet: Ipv4Net) -> Result<()> {
    let switch = Switch::create(SWITCH)?.keep();
    let connect = |namespace: Option<&Namespace>, interface: &str, port: &str, numbers: &[u8]| {
        let addresses: Vec<String> = numbers
            .iter()
            .enumerate()
            .map(|(index, number)| {
                // The first is the primary one, and the others belong to no network of their own.
                let length = if index == 0 { 24 } else { 32 };
                format!("{}/{length}", address(subnet, *number))
            })
            .collect();
        switch.connect(Port { namespace, interface, port, addresses: &addresses, mtu: 1500 })
    };
    connect(None, HOST_INTERFACE, "host", &[1])?;
    let balancer = Namespace::create(BALANCER)?.keep();
    connect(Some(&balancer), "eth0", "lb", &[10, 100])?;
    // In generic mode, the program must see segments before they are merged.
    balancer.run("ethtool", &["-K", "eth0", "gro", "off"])?;
    for (name, number) in BACKENDS.into_iter().zip(101..) {
        let namespace = Namespace::create(backend_namespace(name).name())?.keep();
        connect(Some(&namespace), "eth0", name, &[number])?;
        start(name)?;
    }
    fs::write(file("lb.toml"), configuration(subnet))?;
    start(CONTROLLER)?;
    wait_for_backends()
}

/// Removes all that is there of it.
pub(super) fn down() -> Result<()> {
    let was_there = Path::new(DIRECTORY).exists();
    for namespace in namespaces() {
        if namespace.exists() {
            namespace.end_processes(Duration::from_secs(3));
        }
    }
    if was_there {
        remove_pins(Path::new(PINS))?;
    }
    if Path::new("/sys/class/net").join(HOST_INTERFACE).exists() {
        netns::run("ip", &["link", "delete", HOST_INTERFACE])?;
    }
    for namespace in namespaces() {
        if namespace.exists() {
            namespace.delete()?;
        }
    }
    if file("mounted").exists() {
        netns::run("umount", &["/sys/fs/bpf"])?;
    }
    if was_there {
        remove_if_there(fs::remove_file(SOCKET))?;
        if let Some(directory) = Path::new(SOCKET).parent() {
            // Somebody else's files may be in it.
            let _: std::io::Result<()> = fs::remove_dir(directory);
        }
    }
    remove_if_there(fs::remove_dir_all(DIRECTORY))
}

/// Kills the process of a backend or of the controller.
pub(super) fn kill(name: &str) -> Result<()> {
    let namespace = namespace_of(name)?;
    ensure!(!namespace.processes().is_empty(), "{name} isn't running");
    namespace.end_processes(Duration::ZERO);
    println!("{name} is dead; start it again with `cargo xtask lab start {name}`");
    Ok(())
}

/// Starts the process of a backend or of the controller.
pub(super) fn start(name: &str) -> Result<()> {
    let namespace = namespace_of(name)?;
    ensure!(namespace.processes().is_empty(), "{name} is running already");
    let Some(number) = BACKENDS.iter().position(|known| *known == name) else {
        let mut command = namespace.command(lb().to_str().context("the path isn't UTF-8")?);
        return detached(command.arg("run").arg("-c").arg(file("lb.toml")), name);
    };
    let address = format!("{}:8080", address(subnet()?, number as u8 + 101));
    let own = std::env::current_exe()?;
    let mut command = namespace.command(own.to_str().context("the path isn't UTF-8")?);
    detached(command.args(["lab", "backend", name, &address]), name)
}

fn namespace_of(name: &str) -> Result<Namespace> {
    let namespace = match name {
        CONTROLLER => Namespace::existing(BALANCER),
        name if BACKENDS.contains(&name) => backend_namespace(name),
        _ => bail!("no {name} in the lab; there are {} and {CONTROLLER}", BACKENDS.join(", ")),
    };
    ensure!(namespace.exists(), "the lab isn't up; start it with `cargo xtask lab up`");
    Ok(namespace)
}

/// Says what is there.
pub(super) fn print_status() -> Result<()> {
    if !is_up() {
        let left: Vec<String> = namespaces()
            .iter()
            .filter(|namespace| namespace.exists())
            .map(|namespace| namespace.name().to_owned())
            .collect();
        match left.as_slice() {
            [] => println!("The lab is down."),
            left => println!(
                "The lab is broken: {} are left; remove them with `cargo xtask lab down`.",
                left.join(", ")
            ),
        }
        return Ok(());
    }
    println!("The lab is up on {}.\n", subnet()?);
    crate::build::succeed(Command::new(lb()).arg("status").arg("-c").arg(file("lb.toml")))
}

fn configuration(subnet: Ipv4Net) -> String {
    let at = |number| address(subnet, number);
    let mut text = format!(
        "interfaces = [\"eth0\"]\nadmin = \"{}:8404\"\nsocket = \"{SOCKET}\"\npin_path = \
         \"{PINS}\"\n\n[limits]\nflows = 65_536\nembryonic = 65_536\n\n[[service]]\nname = \
         \"cloudstack-ui\"\nbind = [\"{}:8080\"]\n\n[service.check]\ntype = \"http\"\npath = \
         \"/client/\"\ninterval = \"1s\"\n",
        at(10),
        at(100)
    );
    for (name, number) in BACKENDS.into_iter().zip(101..) {
        text += &format!(
            "\n[[service.backend]]\nname = \"{name}\"\naddress = \"{}:8080\"\n",
            at(number)
        );
    }
    text
}

/// Starts a program that outlives this one, with its output in a file of the lab's.
fn detached(command: &mut Command, name: &str) -> Result<()> {
    let log = File::options().create(true).append(true).open(file(&format!("{name}.log")))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // SAFETY: setsid may be called between fork and exec.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(std::io::Error::from));
    }
    command.spawn().with_context(|| format!("starting {name}"))?;
    Ok(())
}

fn wait_for_backends() -> Result<()> {
    let start = Instant::now();
    let balancer = Namespace::existing(BALANCER);
    loop {
        let output = Command::new(lb())
            .args(["list", "services", "--json", "-c"])
            .arg(file("lb.toml"))
            .output()?;
        let services: serde_json::Value =
            serde_json::from_slice(&output.stdout).unwrap_or_default();
        if services[0]["backends_up"] == BACKENDS.len() {
            return Ok(());
        }
        if balancer.processes().is_empty() || start.elapsed() > PATIENCE {
            let log = fs::read_to_string(file("lb.log")).unwrap_or_default();
            bail!("the balancer didn't start:\n{log}");
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn mount_bpf_file_system() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    if !mounts.lines().any(|line| line.split(' ').nth(1) == Some("/sys/fs/bpf")) {
        netns::run("mount", &["-t", "bpf", "bpf", "/sys/fs/bpf"])?;
        fs::write(file("mounted"), "")?;
    }
    Ok(())
}

/// Removes pins, which lie one directory deep: links first, since a program must not run on
/// without its maps.
fn remove_pins(root: &Path) -> Result<()> {
    let Ok(directories) = fs::read_dir(root) else { return Ok(()) };
    for directory in directories.flatten() {
        let mut pins: Vec<_> =
            fs::read_dir(directory.path())?.flatten().map(|pin| pin.path()).collect();
        pins.sort_by_key(|pin| !pin.to_string_lossy().contains("/link_"));
        for pin in pins {
            fs::remove_file(pin)?;
        }
        fs::remove_dir(directory.path())?;
    }
    Ok(fs::remove_dir(root)?)
}

fn remove_if_there(result: std::io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
