//! What HAProxy thinks of a server.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Stdio},
};

use anyhow::{Context, Result};

use crate::{bed::Bed, wait::wait_until};

/// An HAProxy that ends with its guard.
pub struct Haproxy {
    process: Child,
    socket: PathBuf,
}

impl Haproxy {
    /// Starts one where the balancer is, with those lines of a backend `b`, and waits until it answers.
    ///
    /// # Errors
    ///
    /// It doesn't.
    pub fn start(bed: &Bed, backend: &str) -> Result<Self> {
        let file = bed.config().with_file_name("haproxy.cfg");
        let socket = bed.config().with_file_name("haproxy.sock");
        let text = format!(
            "global\n stats socket {}\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 5s\n timeout server \
             5s\n timeout check 5s\nbackend b\n {backend}\n",
            socket.display()
        );
        fs::write(&file, &text)?;
        let mut command = bed.balancer.command("haproxy");
        command.arg("-db").arg("-f").arg(&file).stderr(Stdio::null()).stdout(Stdio::null());
        let process = command.spawn().context("haproxy")?;
        let haproxy = Self { process, socket };
        wait_until("HAProxy answers", || Ok(UnixStream::connect(&haproxy.socket).is_ok()))?;
        Ok(haproxy)
    }

    /// What it thinks of the server, in our words, and the server's weight.
    ///
    /// # Errors
    ///
    /// It doesn't say.
    pub fn state(&self) -> Result<(&'static str, u64)> {
        let line = self.line()?;
        let mut fields = line.split(',').skip(17);
        let status = fields.next().context("no status")?;
        let weight = fields.next().context("no weight")?.parse()?;
        let words = [
            ("UP", "up"),
            ("DOWN", "down"),
            ("NOLB", "drain"),
            ("DRAIN", "drain"),
            ("MAINT", "maint"),
        ];
        let word = words.into_iter().find(|(word, _)| status.starts_with(word));
        let (_, ours) = word.with_context(|| status.to_owned())?;
        Ok((ours, weight))
    }

    /// Whether a check has ended.
    ///
    /// # Errors
    ///
    /// It doesn't say.
    pub fn has_checked(&self) -> Result<bool> {
        let line = self.line()?;
        let check = line.split(',').nth(36).context("no check")?;
        Ok(!check.is_empty() && !check.starts_with("* ") && check != "INI")
    }

    /// What it tells of the server `s`.
    fn line(&self) -> Result<String> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.write_all(b"show stat\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let line = text.lines().find(|line| line.starts_with("b,s,")).context("no server")?;
        Ok(line.to_owned())
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        // It may have ended already.
        let _: std::io::Result<()> = self.process.kill();
        let _: std::io::Result<std::process::ExitStatus> = self.process.wait();
    }
}
