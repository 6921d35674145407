//! Sessions of a Jetty, as a CloudStack management server keeps them: each is on one server only, and is lost for a client that
//! comes to another.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use lb_tests::{bed::Bed, wait::wait_until};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use xtask::netns::run;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");
const SERVERS: [&str; 3] = ["mgmt01", "mgmt02", "mgmt03"];
/// Where each of them has its Jetty.
const PORT: u16 = 8081;
/// Jetty's parts, of Debian's libjetty9-java.
const JETTY: [&str; 7] = [
    "jetty9-server",
    "jetty9-servlet",
    "jetty9-security",
    "jetty9-http",
    "jetty9-io",
    "jetty9-util",
    "servlet-api",
];
const CLIENTS: u8 = 12;

/// A network whose backends run Jettys as well.
struct Sessions {
    bed: Bed,
    directory: TempDir,
    clients: Vec<Client>,
}

/// Somebody with an address of their own who has logged in.
struct Client {
    address: Ipv4Addr,
    service: &'static str,
    cookies: PathBuf,
    /// Where their session is, and how many requests it has had.
    session: (String, u32),
}

impl Client {
    /// Asks for something by a new connection, and returns who answers, and the how manieth request of the session it was.
    fn ask(&self, bed: &Bed) -> Result<(String, u32)> {
        let cookies = self.cookies.to_str().context("no path")?;
        let url = format!("http://{}/client/api", self.service);
        let address = self.address.to_string();
        let answer = bed.client.run(
            "curl",
            &[
                "-sSf",
                "--max-time",
                "5",
                "--interface",
                &address,
                "-b",
                cookies,
                "-c",
                cookies,
                &url,
            ],
        )?;
        let (name, count) = answer.trim().split_once(' ').context("no count")?;
        Ok((name.to_owned(), count.parse()?))
    }

    /// Asks again, and demands that the session is still there.
    fn go_on(&mut self, bed: &Bed, what: &str) -> Result<()> {
        let (name, count) = &mut self.session;
        *count += 1;
        let wanted = (name.clone(), *count);
        let got = self.ask(bed)?;
        ensure!(
            got == wanted,
            "{what}: the session of {} by {} was at {wanted:?}, and is {got:?}",
            self.address,
            self.service
        );
        Ok(())
    }
}

fn class_path(classes: &Path) -> String {
    let jars = JETTY.map(|part| format!("/usr/share/java/{part}.jar"));
    format!("{}:{}", classes.display(), jars.join(":"))
}

/// Of each service by one server more or less, what clients come by.
fn services(servers: &[&str]) -> String {
    let mut text = String::new();
    for (name, port, how) in
        [("affinity", 8080, "affinity = \"10m\""), ("source", 8090, "balance = \"source\"")]
    {
        text += &format!(
            "[[service]]\nname = \"{name}\"\nbind = [\"10.91.0.100:{port}\"]\n{how}\n\
             [service.check]\ninterval = \"200ms\"\n"
        );
        for (number, server) in servers.iter().enumerate() {
            let address = format!("10.91.0.{}:{PORT}", 101 + number);
            text += &format!("[[service.backend]]\nname = \"{server}\"\naddress = \"{address}\"\n");
        }
    }
    text
}

impl Sessions {
    /// Everybody has logged in at servers that are up.
    fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/java/ManagementServer.java");
        let classes = directory.path();
        let path = class_path(classes);
        let into = classes.to_str().context("no path")?;
        run("javac", &["-cp", &path, "-d", into, source])?;
        let mut bed = Bed::without_controller(LB, "native", SERVERS.len() as u8)?;
        for server in SERVERS {
            let mut java = bed.backend_namespace(server)?.command("java");
            java.args(["-Xmx64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", &path]);
            java.args([
                "ManagementServer",
                bed.backend_address(server)?,
                &PORT.to_string(),
                server,
            ]);
            let log = fs::File::create(classes.join(server))?;
            java.stdout(log.try_clone()?).stderr(log);
            // It ends with its namespace.
            java.spawn()?;
        }
        bed.write_config_of(&services(&SERVERS))?;
        bed.start_controller(&[])?;
        let mut sessions = Self { bed, directory, clients: Vec::new() };
        sessions.wait_for_up(2 * SERVERS.len())?;
        for number in 0..CLIENTS {
            let address = Ipv4Addr::new(10, 91, 0, 150 + number);
            let interface = format!("{address}/24");
            sessions.bed.client.ip(&["addr", "add", &interface, "dev", "eth0"])?;
            for service in ["10.91.0.100:8080", "10.91.0.100:8090"] {
                let cookies = sessions.directory.path().join(format!("{address}-{service}"));
                let mut client = Client { address, service, cookies, session: Default::default() };
                client.session = client.ask(&sessions.bed)?;
                sessions.clients.push(client);
            }
        }
        Ok(sessions)
    }

    fn wait_for_up(&self, count: usize) -> Result<()> {
        wait_until("all are up", || {
            let backends = self.bed.json(&["list", "backends", "--json"])?;
            let up = |backends: &Vec<serde_json::Value>| {
                backends.iter().filter(|backend| backend["state"] == "up").count()
            };
            Ok(backends.as_array().map_or(0, up) == count)
        })
    }

    /// Everybody goes on, by connections of their own.
    fn go_on(&mut self, what: &str) -> Result<()> {
        for client in &mut self.clients {
            client.go_on(&self.bed, what)?;
        }
        Ok(())
    }
}

#[test]
fn sessions_stay_on_one_server_through_ring_changes_and_restarts() -> Result<()> {
    let mut sessions = Sessions::start()?;
    for service in ["10.91.0.100:8080", "10.91.0.100:8090"] {
        let of_service = sessions.clients.iter().filter(|client| client.service == service);
        let mut servers: Vec<&str> = of_service.map(|client| client.session.0.as_str()).collect();
        servers.sort_unstable();
        servers.dedup();
        ensure!(servers.len() > 1, "{service}: all on {servers:?}");
    }
    sessions.go_on("at once")?;

    // The ring changes: those of a server that drains come elsewhere, and are back when it is.
    for service in ["affinity", "source"] {
        sessions.bed.lb_ok(&["drain", &format!("{service}/mgmt02")])?;
    }
    let bed = &sessions.bed;
    for client in sessions.clients.iter_mut().filter(|client| client.session.0 != "mgmt02") {
        client.go_on(bed, "while another drains")?;
    }
    for service in ["affinity", "source"] {
        sessions.bed.lb_ok(&["ready", &format!("{service}/mgmt02")])?;
    }
    sessions.go_on("after that")?;

    // The controller is killed, and another one takes over.
    sessions.bed.stop_controller(Signal::SIGKILL)?;
    sessions.go_on("without a controller")?;
    sessions.bed.start_controller(&[])?;
    sessions.go_on("with another controller")?;
    sessions.bed.stop_controller(Signal::SIGTERM)?;
    sessions.bed.start_controller(&[])?;
    sessions.go_on("after a restart")?;

    // Weights change, which makes another ring: who is known stays.
    for (server, weight) in [("mgmt01", "200"), ("mgmt03", "7")] {
        sessions.bed.lb_ok(&["weight", &format!("affinity/{server}"), weight])?;
    }
    sessions.bed.write_config_of(&services(&SERVERS[..2]))?;
    sessions.bed.lb_ok(&["reload"])?;
    sessions.bed.write_config_of(&services(&SERVERS))?;
    sessions.bed.lb_ok(&["reload"])?;
    sessions.wait_for_up(2 * SERVERS.len())?;
    sessions.go_on("with a server that went and came back, and other weights")
}
