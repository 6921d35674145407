//! What operators use today, set up in a test's network beside the balancer.

use std::{
    fmt::Write as _,
    fs,
    process::{Child, Stdio},
};

use anyhow::{Context, Result};

use crate::{
    bed::{BALANCER, Bed},
    wait::wait_until,
};

/// Where they are reached.
pub const HAPROXY: &str = "10.91.0.200:8080";
/// The same of nftables.
pub const NFTABLES: &str = "10.91.0.201:8080";

/// An HAProxy that ends with its guard.
pub struct Haproxy(Child);

impl Haproxy {
    /// Starts one where the balancer is, in TCP mode with the same backends and checks by HTTP, and waits until
    /// it answers.
    ///
    /// # Errors
    ///
    /// It doesn't.
    pub fn start(bed: &Bed, backends: &[&str]) -> Result<Self> {
        Self::run(bed, "option httpchk GET /client/", 8080, backends)
    }

    /// Starts one that shares connections out in another way, to servers on a port.
    ///
    /// # Errors
    ///
    /// It doesn't answer.
    pub fn with_balance(bed: &Bed, balance: &str, port: u16, backends: &[&str]) -> Result<Self> {
        Self::run(bed, &format!("balance {balance}"), port, backends)
    }

    fn run(bed: &Bed, line: &str, port: u16, backends: &[&str]) -> Result<Self> {
        bed.balancer.ip(&["address", "add", "10.91.0.200/32", "dev", "eth0"])?;
        let mut text = format!(
            "defaults\n mode tcp\n timeout connect 2s\n timeout client 50s\n timeout server 50s\n\
             listen ui\n bind {HAPROXY}\n {line}\n"
        );
        for name in backends {
            writeln!(text, " server {name} {}:{port} check", bed.backend_address(name)?)?;
        }
        let file = bed.config().with_extension("cfg");
        fs::write(&file, text)?;
        let mut command = bed.balancer.command("haproxy");
        let command = command.arg("-db").arg("-f").arg(&file).stderr(Stdio::null());
        let guard = Self(command.spawn().context("haproxy")?);
        let url = format!("http://{HAPROXY}/client/");
        wait_until("HAProxy answers", || {
            Ok(bed.client.run("curl", &["-sf", "--max-time", "1", &url]).is_ok())
        })?;
        Ok(guard)
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        // It may have ended already.
        let _: std::io::Result<()> = self.0.kill();
        let _: std::io::Result<std::process::ExitStatus> = self.0.wait();
    }
}

/// Has nftables translate connections to backends chosen at random, from the balancer's address and some ports.
///
/// # Errors
///
/// It can't.
pub fn nftables(bed: &Bed, backends: &[&str], (first, last): (u16, u16)) -> Result<()> {
    let mut chosen = Vec::new();
    let mut all = Vec::new();
    for (number, name) in backends.iter().enumerate() {
        let address = bed.backend_address(name)?;
        chosen.push(format!("{number} : {address}"));
        all.push(address);
    }
    let (count, chosen, all) = (backends.len(), chosen.join(", "), all.join(", "));
    bed.balancer.ip(&["address", "add", "10.91.0.201/32", "dev", "eth0"])?;
    bed.balancer.run("sysctl", &["-qw", "net.ipv4.ip_forward=1"])?;
    let rules = format!(
        "table ip nat {{\n chain pre {{ type nat hook prerouting priority -100;\n  ip daddr 10.91.0.201 \
         tcp dport 8080 dnat to numgen random mod {count} map {{ {chosen} }}\n }}\n chain post {{ type \
         nat hook postrouting priority 100;\n  ip daddr {{ {all} }} tcp dport 8080 ct status dnat snat \
         to {BALANCER}:{first}-{last}\n }}\n}}\n"
    );
    let file = bed.config().with_extension("nft");
    fs::write(&file, rules)?;
    bed.balancer.run("nft", &["-f", file.to_str().context("UTF-8")?])?;
    Ok(())
}
