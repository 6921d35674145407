//! What the balancer under test answers and shows.

use std::{
    fs,
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Bed;
use crate::wait::wait_until;

impl Bed {
    /// An `lb` command where the balancer is.
    pub fn lb_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.balancer.command(&self.lb);
        command.arg("-c").arg(self.config()).args(arguments);
        command
    }

    /// Runs an `lb` command where the balancer is.
    ///
    /// # Errors
    ///
    /// It can't be started.
    pub fn lb(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.lb_command(arguments).output()?)
    }

    /// Runs an `lb` command that must succeed, and returns what it printed.
    ///
    /// # Errors
    ///
    /// It doesn't.
    pub fn lb_ok(&self, arguments: &[&str]) -> Result<String> {
        let output = self.lb(arguments)?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "lb {}: {error}", arguments.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs an `lb` command that prints JSON.
    ///
    /// # Errors
    ///
    /// It fails, or prints something else.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.lb_ok(arguments)?)?)
    }

    /// A backend as `lb list backends` shows it.
    ///
    /// # Errors
    ///
    /// It isn't shown.
    pub fn shown(&self, name: &str) -> Result<Value> {
        let backends = self.json(&["list", "backends", "--json"])?;
        let found = backends.as_array().into_iter().flatten().find(|shown| shown["name"] == name);
        found.cloned().with_context(|| format!("no backend {name} in {backends}"))
    }

    /// Whether the controller has told of an event in which there is `what`.
    ///
    /// # Errors
    ///
    /// It doesn't answer.
    pub fn has_told(&self, what: &str) -> Result<bool> {
        Ok(self.lb_ok(&["events"])?.contains(what))
    }

    /// Waits until it has.
    ///
    /// # Errors
    ///
    /// It doesn't.
    pub fn wait_for_event(&self, what: &str) -> Result<()> {
        wait_until(&format!("{what:?} is told"), || self.has_told(what))
    }

    /// Memory that the controller takes, in kilobytes.
    ///
    /// # Errors
    ///
    /// It doesn't run.
    pub fn controller_memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.controller_pid()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        Ok(line.context("VmRSS")?.trim().trim_end_matches(" kB").parse()?)
    }

    /// The controller's process.
    ///
    /// # Errors
    ///
    /// It doesn't run.
    pub fn controller_pid(&self) -> Result<u64> {
        self.json(&["status", "--json"])?["controller"]["pid"].as_u64().context("pid")
    }

    /// Waits until so many backends are up.
    ///
    /// # Errors
    ///
    /// They don't get there.
    pub fn wait_for_up(&self, count: u64) -> Result<()> {
        wait_until("backends are up", || {
            Ok(self.json(&["list", "services", "--json"])?[0]["backends_up"] == count)
        })
        .with_context(|| fs::read_to_string(self.log()).unwrap_or_default())
    }

    /// Waits until a backend is in a state.
    ///
    /// # Errors
    ///
    /// It doesn't get there.
    pub fn wait_for_state(&self, name: &str, state: &str) -> Result<()> {
        wait_until(&format!("{name} is {state}"), || Ok(self.shown(name)?["state"] == state))
    }

    /// Connections under way to a backend that completed their handshake since the start.
    ///
    /// # Errors
    ///
    /// The backend isn't shown.
    pub fn new_flows(&self, name: &str) -> Result<u64> {
        self.shown(name)?["new_flows"].as_u64().context("new_flows")
    }

    /// Packets counted under a reason.
    ///
    /// # Errors
    ///
    /// There is no such reason.
    pub fn reason(&self, name: &str) -> Result<u64> {
        let reasons = self.json(&["list", "reasons", "--json"])?;
        let found =
            reasons.as_array().into_iter().flatten().find(|reason| reason["reason"] == name);
        found.and_then(|reason| reason["packets"].as_u64()).context("no such reason")
    }
}
