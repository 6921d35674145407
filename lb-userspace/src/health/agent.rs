//! The agent check that HAProxy's users have: a program at the backend tells, in a line of words, whether it is up and how
//! much it takes (HAProxy's configuration manual, `agent-check`).

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};

use super::{Task, Turn};
use crate::config::Agent;

/// Longest line, in bytes.
const LONGEST_LINE: u64 = 4096;

/// What an agent has said. What it doesn't mention stays as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Whether the backend is well.
    pub is_up: Option<bool>,
    /// What an administrator wants of it.
    pub wish: Option<Wish>,
    /// Its weight, in percent of the configured one.
    pub percent: Option<u16>,
    /// Why, in its own words.
    pub reason: Option<String>,
}

/// What an administrator wants of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// That it takes traffic.
    Ready,
    /// That it takes nothing new.
    Drain,
    /// That it takes nothing.
    Maint,
}

impl Said {
    /// Reads a line: words that are separated by blanks, tabs or commas, and a reason after `#`. Words that aren't known
    /// mean nothing.
    pub fn parse(line: &str) -> Self {
        let (words, reason) = line.split_once('#').unwrap_or((line, ""));
        let mut said = Self::default();
        for word in words.split([' ', '\t', ',', '\r', '\n']).filter(|word| !word.is_empty()) {
            match word.to_ascii_lowercase().as_str() {
                "up" => said.is_up = Some(true),
                "down" | "failed" | "fail" | "stopped" => said.is_up = Some(false),
                "ready" => said.wish = Some(Wish::Ready),
                "drain" => said.wish = Some(Wish::Drain),
                "maint" => said.wish = Some(Wish::Maint),
                word => {
                    let percent = word.strip_suffix('%').and_then(|number| number.parse().ok());
                    said.percent =
                        percent.filter(|percent| *percent <= LARGEST_PERCENT).or(said.percent);
                }
            }
        }
        // It is shown on terminals.
        let reason: String = reason.trim().chars().filter(|letter| !letter.is_control()).collect();
        said.reason = (!reason.is_empty()).then_some(reason);
        said
    }

    /// Whether nothing is said.
    fn is_empty(&self) -> bool {
        *self == Self { reason: self.reason.clone(), ..Self::default() }
    }
}

/// As in HAProxy, the weight itself stays within 256.
const LARGEST_PERCENT: u16 = 25_600;

/// Asks again and again, until what is returned is dropped, and reports what is said, or why nothing is.
pub fn ask<F: Future<Output = ()> + Send>(
    agent: Agent,
    address: SocketAddr,
    timeout: Duration,
    turn: Turn,
    report: impl Fn(Result<Said, String>) -> F + Send + 'static,
) -> Task {
    let agent = Arc::new(agent);
    Task::spawn(async move {
        let mut due = time::Instant::now() + turn.first();
        loop {
            time::sleep_until(due).await;
            let said = time::timeout(timeout, question(&agent, address)).await;
            report(said.unwrap_or_else(|_| Err("it takes too long".to_owned()))).await;
            due = (due + agent.interval).max(time::Instant::now());
        }
    })
}

/// What it says now.
async fn question(agent: &Agent, address: SocketAddr) -> Result<Said, String> {
    let words = |error: io::Error| super::words(&error).detail;
    let mut stream = TcpStream::connect((address.ip(), agent.port)).await.map_err(words)?;
    if let Some(send) = &agent.send {
        stream.write_all(send.as_bytes()).await.map_err(words)?;
    }
    let mut line = Vec::new();
    let mut rest = stream.take(LONGEST_LINE);
    // Without its end, it may not be whole.
    while !line.iter().any(|byte| b"\r\n".contains(byte)) {
        if rest.read_buf(&mut line).await.map_err(words)? == 0 {
            return Err("it says no whole line".to_owned());
        }
    }
    let text = String::from_utf8_lossy(&line);
    let said = Said::parse(text.split(['\r', '\n']).next().unwrap_or_default());
    if said.is_empty() { Err("it says no word that counts".to_owned()) } else { Ok(said) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_taken_for_what_haproxys_manual_says() {
        let said = Said::parse("up ready,75%\t# all well\r\n");
        assert_eq!(said.is_up, Some(true));
        assert_eq!(said.wish, Some(Wish::Ready));
        assert_eq!(said.percent, Some(75));
        assert_eq!(said.reason.as_deref(), Some("all well"));
        assert_eq!(Said::parse("stopped").is_up, Some(false));
        assert_eq!(Said::parse("DRAIN").wish, Some(Wish::Drain));
        assert_eq!(Said::parse("maint").wish, Some(Wish::Maint));
        assert!(Said::parse("maxconn:30 nonsense 1e9% 99999%").is_empty());
        assert!(Said::parse("# only a reason").is_empty());
    }
}
