//! Health checks: whether a backend is well is decided here, from what single checks say.

mod http;
mod judge;
mod target;

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, task::AbortHandle, time};

pub use judge::{Judge, Verdict};
pub use target::{Passage, Target, Vip};

use self::target::Led;
use crate::config::{Check, CheckKind};

/// What a check brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What is to be thought of the backend now.
    pub verdict: Verdict,
    /// The newest result in words.
    pub detail: String,
    /// Why the check failed, if it did.
    pub cause: Option<Cause>,
    /// How long the check took.
    pub duration: Duration,
}

/// When a backend is checked, among others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turn {
    /// Its place among them, from 0 to 1.
    pub phase: f64,
    /// How long it takes until each of them has been checked for the first time. From then on they are spread over the
    /// interval.
    pub first_round: Duration,
}

impl Turn {
    /// Until the first check.
    fn first(self) -> Duration {
        self.first_round.mul_f64(self.phase)
    }

    /// From the first check to the second.
    fn second(self, interval: Duration) -> Duration {
        let rest = interval.saturating_sub(self.first_round);
        (self.first_round + rest.mul_f64(self.phase)).clamp(interval / 20, interval)
    }
}

/// Checks one backend again and again, until it is dropped.
#[derive(Debug)]
pub struct Checker(AbortHandle);

impl Checker {
    /// Starts to check at intervals, when it is its `turn`, within a tokio runtime. `report` is
    /// called after every check; `verdict` is what was thought before.
    ///
    /// `passage` is there where a target needs it.
    pub fn start<F: Future<Output = ()> + Send>(
        check: Arc<Check>,
        target: Target,
        passage: Option<Arc<Passage>>,
        verdict: Verdict,
        turn: Turn,
        report: impl Fn(Report) -> F + Send + 'static,
    ) -> Self {
        let task = tokio::spawn(async move {
            let mut judge = Judge::new(verdict);
            let mut is_first = true;
            let mut due = time::Instant::now() + turn.first();
            loop {
                time::sleep_until(due).await;
                let start = Instant::now();
                let outcome = run(&check, &target, passage.as_deref()).await;
                let duration = start.elapsed();
                // What this host couldn't do says nothing of the backend.
                let verdict = match &outcome {
                    Err(failure) if failure.cause == Cause::Local => judge.verdict(),
                    outcome => judge.record(outcome.is_ok(), check.rise, check.fall),
                };
                let (detail, cause) = match outcome {
                    Ok(detail) => (detail, None),
                    Err(failure) => (failure.detail, Some(failure.cause)),
                };
                report(Report { verdict, detail, cause, duration }).await;

                let interval = interval(&check, &judge);
                let gap = if is_first { turn.second(interval) } else { interval };
                is_first = false;
                // Counted from when it was due, so that each keeps its place among the others.
                due = (due + gap).max(time::Instant::now());
            }
        });
        Self(task.abort_handle())
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Time from the start of a check to that of the next.
fn interval(check: &Check, judge: &Judge) -> Duration {
    let special = if judge.is_wavering() {
        check.fast_interval
    } else if judge.verdict() == Verdict::Down {
        check.down_interval
    } else {
        None
    };
    special.unwrap_or(check.interval)
}

/// Why a check failed, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The backend refused the connection.
    Refused,
    /// It reset it.
    Reset,
    /// It, or its network, can't be reached.
    Unreachable,
    /// It took too long.
    Timeout,
    /// It answered, but not what was wanted.
    Answer,
    /// What it said isn't what its protocol says.
    Protocol,
    /// This host couldn't do it.
    Local,
}

impl Cause {
    /// Every one.
    pub const ALL: [Self; 7] = [
        Self::Refused,
        Self::Reset,
        Self::Unreachable,
        Self::Timeout,
        Self::Answer,
        Self::Protocol,
        Self::Local,
    ];

    /// The word for it in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Answer => "answer",
            Self::Protocol => "protocol",
            Self::Local => "local",
        }
    }
}

/// What went wrong with a check.
#[derive(Clone, Debug)]
struct Failure {
    cause: Cause,
    /// In an operator's words.
    detail: String,
}

impl Failure {
    fn new(cause: Cause, detail: impl Into<String>) -> Self {
        Self { cause, detail: detail.into() }
    }
}

/// One check: the result in words, or a failure.
async fn run(check: &Check, target: &Target, passage: Option<&Passage>) -> Result<String, Failure> {
    let with_port =
        |address: SocketAddr| SocketAddr::new(address.ip(), check.port.unwrap_or(address.port()));
    match target {
        Target::Own(address) => {
            let address = with_port(*address);
            let connect = async { Ok((TcpStream::connect(address).await?, ())) };
            in_time(check, address, connect).await
        }
        Target::Vips { backend, forwarding, vips } => {
            let mut detail = String::new();
            for vip in vips {
                let vip = Vip { address: with_port(vip.address), ..*vip };
                let connect = async {
                    let passage =
                        passage.ok_or_else(|| io::Error::other("no namespace to check from"))?;
                    let Led { stream, detour } =
                        passage.connect(*backend, *forwarding, vip).await?;
                    Ok((stream, detour))
                };
                let failed = |failure: Failure| {
                    let detail = format!("VIP {}: {}", vip.address.ip(), failure.detail);
                    Failure { detail, ..failure }
                };
                detail = in_time(check, vip.address, connect).await.map_err(failed)?;
            }
            Ok(detail)
        }
    }
}

/// Connects, sends the request if there is one, and judges the answer, within the check's time. What
/// comes with the connection is kept until that is closed.
async fn in_time<K>(
    check: &Check,
    address: SocketAddr,
    connect: impl Future<Output = io::Result<(TcpStream, K)>>,
) -> Result<String, Failure> {
    let mut step = "connecting";
    let work = async {
        let (stream, _kept) = connect.await.map_err(|error| words(&error))?;
        let CheckKind::Http(http) = &check.kind else {
            // It is closed before what comes with it is dropped.
            drop(stream);
            return Ok("connected".to_owned());
        };
        step = "waiting for the answer";
        http::request(http, address, stream).await
    };
    match time::timeout(check.timeout, work).await {
        Ok(result) => result,
        Err(_) => {
            let time = humantime::format_duration(check.timeout);
            Err(Failure::new(Cause::Timeout, format!("timeout after {time} {step}")))
        }
    }
}

/// An error of a connection.
fn words(error: &io::Error) -> Failure {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => Failure::new(Cause::Refused, "connection refused"),
        ErrorKind::ConnectionReset => Failure::new(Cause::Reset, "connection reset"),
        ErrorKind::HostUnreachable => Failure::new(Cause::Unreachable, "host unreachable"),
        ErrorKind::NetworkUnreachable => Failure::new(Cause::Unreachable, "network unreachable"),
        ErrorKind::TimedOut => Failure::new(Cause::Timeout, "the connection timed out"),
        _ => Failure::new(Cause::Local, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_checked_at_once_and_spread_from_then_on() {
        let second = Duration::from_secs(1);
        let few = |phase| Turn { phase, first_round: Duration::ZERO };
        assert_eq!(few(0.5).first(), Duration::ZERO);
        assert_eq!(few(0.5).second(second), second / 2);
        assert_eq!(few(0.0).second(second), second / 20, "but not twice in a moment");
    }

    #[test]
    fn many_keep_the_places_of_their_first_round() {
        let second = Duration::from_secs(1);
        let many = |phase| Turn { phase, first_round: second };
        assert_eq!(many(0.25).first(), second / 4);
        assert_eq!(many(0.25).second(second), second);
        assert_eq!(many(0.25).second(second / 10), second / 10, "unless they hurry");
    }
}
