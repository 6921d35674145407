//! A network with a balancer, a client and backends, each in a namespace of its own, that goes with
//! its guard.

mod shown;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use xtask::netns::{Namespace, Port, Switch};

use crate::{
    nginx,
    pins::pin_directory,
    wait::{PATIENCE, wait_until, wait_within},
};

/// The service's address and port.
pub const SERVICE: &str = "10.91.0.100:8080";
/// The balancer's own address.
pub const BALANCER: &str = "10.91.0.10";

/// The network.
pub struct Bed {
    /// The program under test.
    lb: String,
    mode: &'static str,
    /// Where the client is.
    pub client: Namespace,
    /// Where the balancer is.
    pub balancer: Namespace,
    backends: Vec<Backend>,
    /// The switch that all of them are connected to.
    pub switch: Switch,
    controller: Option<Child>,
    pins: PathBuf,
    directory: TempDir,
}

/// An nginx in a namespace.
struct Backend {
    name: String,
    address: String,
    namespace: Namespace,
}

impl Bed {
    /// A network with so many backends, and a running balancer that attaches as `mode` says. Every
    /// backend is up.
    ///
    /// # Errors
    ///
    /// The user may not make it, or the balancer doesn't start.
    pub fn new(lb: &str, mode: &'static str, backends: u8) -> Result<Self> {
        let mut bed = Self::without_controller(lb, mode, backends)?;
        bed.write_config("")?;
        bed.start_controller(&[])?;
        bed.wait_for_up(backends.into())?;
        Ok(bed)
    }

    /// The same without a balancer that runs, and without its configuration.
    ///
    /// # Errors
    ///
    /// The user may not make it.
    pub fn without_controller(lb: &str, mode: &'static str, backends: u8) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("lbt{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let switch = Switch::create(&format!("{prefix}-switch"))?;
        let directory = TempDir::new()?;
        let namespace = |role: &str| Namespace::create(&format!("{prefix}-{role}"));
        let mut bed = Self {
            lb: lb.into(),
            mode,
            client: namespace("client")?,
            balancer: namespace("lb")?,
            backends: Vec::new(),
            switch,
            controller: None,
            pins: pin_directory()?,
            directory,
        };
        bed.connect(&bed.client, "client", &["10.91.0.1/24"])?;
        bed.reconnect_balancer()?;
        for number in 1..=backends {
            let name = format!("mgmt{number:02}");
            let namespace = namespace(&name)?;
            let address = format!("10.91.0.{}", 100 + number);
            bed.connect(&namespace, &name, &[&format!("{address}/24")])?;
            bed.backends.push(Backend { name: name.clone(), address, namespace });
            bed.start_backend(&name)?;
        }
        Ok(bed)
    }

    /// Gives the balancer its interface, if it has none.
    ///
    /// # Errors
    ///
    /// It can't be made.
    pub fn reconnect_balancer(&self) -> Result<()> {
        self.connect(&self.balancer, "lb", &["10.91.0.10/24", "10.91.0.100/32"])?;
        // As of a real one, which keeps it.
        self.balancer.ip(&["link", "set", "eth0", "address", "02:5b:00:00:00:0a"])?;
        self.balancer.run("ethtool", &["-K", "eth0", "gro", "off"]).map(drop)
    }

    fn connect(&self, namespace: &Namespace, port: &str, addresses: &[&str]) -> Result<()> {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        self.switch.connect(Port {
            namespace: Some(namespace),
            interface: "eth0",
            port,
            addresses: &addresses,
            mtu: 1500,
        })
    }

    /// Starts a backend's nginx: `/client/` says its name, `/peer` who connected, `/big` is large,
    /// and what is put to `/upload/` is kept.
    ///
    /// # Errors
    ///
    /// There is no such backend, or it doesn't start.
    pub fn start_backend(&self, name: &str) -> Result<()> {
        let backend = self.backend(name)?;
        self.start_nginx(&backend.namespace, name, &[&format!("{}:8080", backend.address)])
    }

    /// Starts such a server anywhere, on some addresses and ports.
    ///
    /// # Errors
    ///
    /// It doesn't start.
    pub fn start_nginx(&self, namespace: &Namespace, name: &str, addresses: &[&str]) -> Result<()> {
        let home = self.directory.path().join(name);
        fs::create_dir_all(home.join("upload"))?;
        fs::create_dir_all(home.join("tmp"))?;
        let config = home.join("nginx.conf");
        fs::write(&config, nginx::configuration(&home, name, addresses))?;
        namespace.run("nginx", &["-c", config.to_str().context("UTF-8")?])?;
        let first = addresses.first().context("no address")?;
        let url = format!("http://{first}/client/");
        wait_until("nginx listens", || Ok(namespace.run("curl", &["-sf", &url]).is_ok()))
    }

    /// Ends a backend's nginx at once.
    ///
    /// # Errors
    ///
    /// There is no such backend.
    pub fn kill_backend(&self, name: &str) -> Result<()> {
        let namespace = &self.backend(name)?.namespace;
        namespace.end_processes(Duration::ZERO);
        // A process leaves its namespaces before its sockets are closed.
        wait_until("its sockets are closed", || {
            Ok(namespace.run("ss", &["-Htln"])?.trim().is_empty())
        })
    }

    /// Runs a program where a backend is.
    ///
    /// # Errors
    ///
    /// There is no such backend, or the program fails.
    pub fn on_backend(&self, name: &str, program: &str, arguments: &[&str]) -> Result<String> {
        self.backend_namespace(name)?.run(program, arguments)
    }

    /// Where a backend is.
    ///
    /// # Errors
    ///
    /// There is no such backend.
    pub fn backend_namespace(&self, name: &str) -> Result<&Namespace> {
        Ok(&self.backend(name)?.namespace)
    }

    /// Where a backend listens, on port 8080.
    ///
    /// # Errors
    ///
    /// There is no such backend.
    pub fn backend_address(&self, name: &str) -> Result<&str> {
        Ok(&self.backend(name)?.address)
    }

    /// A file of a backend's.
    pub fn backend_file(&self, name: &str, file: &str) -> PathBuf {
        self.directory.path().join(name).join(file)
    }

    fn backend(&self, name: &str) -> Result<&Backend> {
        let found = self.backends.iter().find(|backend| backend.name == name);
        found.with_context(|| format!("no backend {name}"))
    }

    /// Where the configuration is.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("lb.toml")
    }

    /// Where the pins are.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Where the control socket is.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("lb.sock")
    }

    /// Writes the usual configuration with every backend, and something at its end.
    ///
    /// # Errors
    ///
    /// The file can't be written.
    pub fn write_config(&self, more: &str) -> Result<()> {
        self.write_config_with(more, |_| true)
    }

    /// The same, with the backends whose name `keep` lets through.
    ///
    /// # Errors
    ///
    /// The file can't be written.
    pub fn write_config_with(&self, more: &str, keep: impl Fn(&str) -> bool) -> Result<()> {
        let mut text = format!(
            "[[service]]\nname = \"ui\"\nbind = [\"{SERVICE}\"]\n[service.timeouts]\nclosing = \
             \"1s\"\n[service.check]\ninterval = \"200ms\"\ntimeout = \"1s\"\n"
        );
        for backend in self.backends.iter().filter(|backend| keep(&backend.name)) {
            text += &format!(
                "[[service.backend]]\nname = \"{}\"\naddress = \"{}:8080\"\n",
                backend.name, backend.address
            );
        }
        self.write_config_of(&(text + more))
    }

    /// Writes a configuration with these services.
    ///
    /// # Errors
    ///
    /// The file can't be written.
    pub fn write_config_of(&self, services: &str) -> Result<()> {
        let text = format!(
            "interfaces = [\"eth0\"]\nxdp_mode = \"{}\"\nadmin = \"\"\nsocket = \"{}\"\n\
             pin_path = \"{}\"\n[limits]\nflows = 65536\nembryonic = 65536\n{services}",
            self.mode,
            self.socket().display(),
            self.pins.display()
        );
        Ok(fs::write(self.config(), text)?)
    }

    /// From now on, runs this program.
    pub fn set_lb(&mut self, lb: &str) {
        self.lb = lb.into();
    }

    /// Starts the controller, and waits until it answers.
    ///
    /// # Errors
    ///
    /// It ends instead; then with what it said.
    pub fn start_controller(&mut self, arguments: &[&str]) -> Result<()> {
        let log = fs::File::options().create(true).append(true).open(self.log())?;
        let mut command = self.balancer.command(&self.lb);
        command.args(["run", "-c"]).arg(self.config()).args(arguments);
        self.spawn_controller(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))
    }

    /// The same by a command that runs it.
    ///
    /// # Errors
    ///
    /// It ends instead.
    pub fn spawn_controller(&mut self, command: &mut Command) -> Result<()> {
        self.controller = Some(command.spawn()?);
        // With a large configuration that takes its time; should it end, that is seen.
        let result = wait_within(PATIENCE * 6, "the controller answers", || {
            if let Some(controller) = &mut self.controller
                && let Some(status) = controller.try_wait()?
            {
                bail!("the controller ended: {status}");
            }
            let status = self.json(&["status", "--json"]);
            Ok(status.is_ok_and(|status| !status["controller"].is_null()))
        });
        result.with_context(|| fs::read_to_string(self.log()).unwrap_or_default())
    }

    /// What the controllers of this network have logged.
    pub fn log(&self) -> PathBuf {
        self.directory.path().join("lb.log")
    }

    /// Ends the controller by a signal, and waits for its end.
    ///
    /// # Errors
    ///
    /// None runs.
    pub fn stop_controller(&mut self, signal: Signal) -> Result<std::process::ExitStatus> {
        let mut controller = self.controller.take().context("no controller runs")?;
        kill(Pid::from_raw(controller.id().cast_signed()), signal)?;
        Ok(controller.wait()?)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(controller) = &mut self.controller {
            // It may have ended already.
            let _: std::io::Result<()> = controller.kill();
            let _: std::io::Result<std::process::ExitStatus> = controller.wait();
        }
        if let Err(error) = lb_userspace::dataplane::Pins::new(&self.pins).remove() {
            eprintln!("removing the pins: {error}");
        }
    }
}
