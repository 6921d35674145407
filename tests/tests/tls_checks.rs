//! Health checks under TLS, beside HAProxy's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use lb_tests::{
    bed::{Bed, SERVICE},
    haproxy::Haproxy,
    wait::wait_until,
};
use nix::sys::signal::Signal;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");
/// Who the backend's certificates are for.
const NAME: &str = "mgmt.example";

/// Makes keys and certificates by openssl.
struct Authority(PathBuf);

impl Authority {
    fn new(directory: &Path) -> Result<Self> {
        let authority = Self(directory.to_path_buf());
        authority.openssl("req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=authority -keyout ca.key -out ca.pem")?;
        Ok(authority)
    }

    fn openssl(&self, arguments: &str) -> Result<()> {
        self.run("openssl", arguments)
    }

    fn run(&self, program: &str, arguments: &str) -> Result<()> {
        let mut command = Command::new(program);
        command.current_dir(&self.0).args(arguments.split(' '));
        let output = command.output().with_context(|| program.to_owned())?;
        ensure!(
            output.status.success(),
            "{arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// A certificate and its key in one file, valid for a day from some date on.
    fn issue(&self, name: &str, since: &str) -> Result<()> {
        fs::write(self.file("names"), format!("subjectAltName=DNS:{name}\n"))?;
        self.openssl(&format!(
            "req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ))?;
        self.run(
            "faketime",
            &format!(
                "{since} openssl x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile \
                 names -out {name}.crt"
            ),
        )?;
        let both = [
            fs::read(self.file(&format!("{name}.crt")))?,
            fs::read(self.file(&format!("{name}.key")))?,
        ];
        Ok(fs::write(self.file(&format!("{name}.pem")), both.concat())?)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// A port of the backend's, what HAProxy and the balancer are told, and what they must say.
type Case = (u16, &'static str, &'static str, &'static str, &'static str);

const CASES: &[Case] = &[
    (9001, "verify none", "verify = false", "up", "status 200"),
    (
        9001,
        "verify required ca-file CA",
        "ca_file = \"CA\"\nhost = \"mgmt.example\"",
        "up",
        "status 200",
    ),
    (
        9001,
        "verify required ca-file @system-ca",
        "host = \"mgmt.example\"",
        "down",
        "is by nobody who is trusted",
    ),
    (
        9001,
        "verify required ca-file CA verifyhost other.example",
        "ca_file = \"CA\"\nhost = \"other.example\"",
        "down",
        "is for another name",
    ),
    (
        9002,
        "verify required ca-file CA",
        "ca_file = \"CA\"\nhost = \"old.example\"",
        "down",
        "has expired",
    ),
    (9002, "verify none", "verify = false", "up", "status 200"),
    (9003, "verify none", "verify = false", "down", "status 400"),
    (
        9003,
        "verify none crt CLIENT",
        "verify = false\ncertificate = \"CLIENT\"",
        "up",
        "status 200",
    ),
    (9004, "verify none", "verify = false", "down", "doesn't speak TLS"),
    (9005, "verify none", "verify = false", "down", "connection refused"),
];

#[test]
fn tls_checks_come_to_the_same_as_haproxys() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "generic", 1)?;
    let home = bed.config().with_file_name("tls");
    fs::create_dir(&home)?;
    let authority = Authority::new(&home)?;
    let now = "now";
    authority.issue(NAME, now)?;
    authority.issue("old.example", "2020-01-01")?;
    authority.issue("client", now)?;
    let server = |port: u16, certificate: &str, more: &str| {
        let file = authority.file(certificate).display().to_string();
        format!(
            "server {{ listen 10.91.0.101:{port} ssl; ssl_certificate {file}; ssl_certificate_key {file}; {more} \
             location / {{ return 200 well; }} }}\n"
        )
    };
    let with_client = format!(
        "ssl_verify_client on; ssl_client_certificate {};",
        authority.file("ca.pem").display()
    );
    let text = format!(
        "daemon on; pid {home}/nginx.pid; error_log {home}/error.log;\nevents {{}}\nhttp {{ access_log off;\n{}{}{}\
         server {{ listen 10.91.0.101:9004; location / {{ return 200 well; }} }} }}\n",
        server(9001, "mgmt.example.pem", ""),
        server(9002, "old.example.pem", ""),
        server(9003, "mgmt.example.pem", &with_client),
        home = home.display(),
    );
    let config = home.join("nginx.conf");
    fs::write(&config, text)?;
    bed.on_backend("mgmt01", "nginx", &["-c", config.to_str().context("UTF-8")?])?;

    let files = |text: &str| {
        text.replace("CA", &authority.file("ca.pem").display().to_string())
            .replace("CLIENT", &authority.file("client.pem").display().to_string())
    };
    for (port, for_haproxy, for_lb, state, detail) in CASES {
        let haproxy = Haproxy::start(
            &bed,
            &format!(
                "option httpchk GET /client/\n server s 10.91.0.101:{port} check inter 100ms rise 1 fall 1 check-ssl {}",
                files(for_haproxy)
            ),
        )?;
        let what = format!("{port}, {for_lb}: {state}");
        wait_until(&format!("HAProxy says of {what}"), || {
            let (said, _) = haproxy.state()?;
            Ok(haproxy.has_checked()? && said == *state)
        })?;
        drop(haproxy);
        bed.write_config_of(&format!(
            "[[service]]\nname = \"ui\"\nbind = [\"{SERVICE}\"]\n[service.check]\ntype = \"https\"\ninterval = \
             \"100ms\"\n{}\n[[service.backend]]\nname = \"s\"\naddress = \"10.91.0.101:{port}\"\n",
            files(for_lb)
        ))?;
        bed.start_controller(&[])?;
        wait_until(&format!("lb says of {what}"), || Ok(bed.shown("s")?["state"] == *state))
            .with_context(|| format!("{:?}", bed.shown("s")))?;
        let shown = bed.shown("s")?["check"].clone();
        println!("{port}, {for_lb}: {shown}");
        ensure!(
            shown["detail"].as_str().is_some_and(|said| said.contains(detail)),
            "{what}: {shown}"
        );
        ensure!(shown["type"] == "https", "{shown}");
        bed.stop_controller(Signal::SIGTERM)?;
        bed.lb_ok(&["detach"])?;
    }
    Ok(())
}
