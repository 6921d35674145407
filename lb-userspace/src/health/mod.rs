//! Health checks: whether a backend is well is decided here, from what single checks say.

mod agent;
mod http;
mod judge;
mod target;
mod tcp;
mod tls;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::AbortHandle,
    time,
};

pub use agent::{Said, Wish, ask};
pub use judge::{Judge, Mark, Verdict};
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
    /// Whether one failed check is enough, if the first one fails.
    pub is_suspect: bool,
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

/// A check is made up to this part of the interval later than it is due, by chance: so balancers that were started together, or
/// something else that happens at intervals, don't meet at the backend again and again.
const JITTER: f64 = 0.05;

/// Work that goes on until this is dropped.
#[derive(Debug)]
pub struct Task(AbortHandle);

impl Task {
    /// Starts it, within a tokio runtime.
    pub fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(work).abort_handle())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Checks one backend again and again, until it is dropped.
#[derive(Debug)]
pub struct Checker {
    _task: Task,
}

impl Checker {
    /// Starts to check at intervals, when it is its `turn`, within a tokio runtime. `report` is
    /// called after every check; `verdict` is what was thought before.
    ///
    /// `passage` is there where a target needs it. While this host is `cut_off` from the backend, failed checks say nothing
    /// of that.
    pub fn start<F: Future<Output = ()> + Send>(
        check: Arc<Check>,
        target: Target,
        (passage, cut_off): (Option<Arc<Passage>>, Arc<AtomicBool>),
        verdict: Verdict,
        turn: Turn,
        report: impl Fn(Report) -> F + Send + 'static,
    ) -> Self {
        let task = Task::spawn(async move {
            let mut judge = Judge::new(verdict);
            if turn.is_suspect {
                judge.suspect(check.fall);
            }
            let mut is_first = true;
            let mut due = time::Instant::now() + turn.first();
            let mut jitter = Duration::ZERO;
            loop {
                time::sleep_until(due + jitter).await;
                let start = Instant::now();
                let outcome = run(&check, &target, passage.as_deref()).await;
                let duration = start.elapsed();
                let outcome = outcome.map_err(|failure| {
                    if !cut_off.load(Ordering::Relaxed) {
                        return failure;
                    }
                    let detail = format!("{}; the link that leads there is down", failure.detail);
                    Failure::new(Cause::Local, detail)
                });
                // What this host couldn't do says nothing of the backend.
                let verdict = match &outcome {
                    Err(failure) if failure.cause == Cause::Local => judge.verdict(),
                    outcome => judge.record(mark(outcome), check.rise, check.fall),
                };
                let (detail, cause) = match outcome {
                    Ok(passed) => (passed.detail, None),
                    Err(failure) => (failure.detail, Some(failure.cause)),
                };
                report(Report { verdict, detail, cause, duration }).await;

                let interval = interval(&check, &judge);
                let gap = if is_first { turn.second(interval) } else { interval };
                is_first = false;
                due = next(due, gap, time::Instant::now());
                jitter = gap.mul_f64(fastrand::f64() * JITTER);
            }
        });
        Self { _task: task }
    }
}

const fn mark(outcome: &Result<Passed, Failure>) -> Mark {
    match outcome {
        Ok(Passed { drains: true, .. }) => Mark::Draining,
        Ok(_) => Mark::Passed,
        Err(_) => Mark::Failed,
    }
}

/// When the next check is due: counted from when the last one was, so that each keeps its place among the others. One
/// that is late is made at once, but those that were missed altogether aren't made up for: after a moment without
/// processor time, all are spread again as they were.
fn next(due: time::Instant, gap: Duration, now: time::Instant) -> time::Instant {
    let due = due + gap;
    let missed = now.saturating_duration_since(due).as_nanos() / gap.as_nanos().max(1);
    due + gap * u32::try_from(missed).unwrap_or(u32::MAX)
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
    /// There is no TLS with it, or its certificate isn't right.
    Tls,
    /// This host couldn't do it.
    Local,
}

impl Cause {
    /// Every one.
    pub const ALL: [Self; 8] = [
        Self::Refused,
        Self::Reset,
        Self::Unreachable,
        Self::Timeout,
        Self::Answer,
        Self::Protocol,
        Self::Tls,
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
            Self::Tls => "tls",
            Self::Local => "local",
        }
    }
}

/// What a check that didn't fail says.
#[derive(Clone, Debug)]
struct Passed {
    /// Whether the backend wants nothing new.
    drains: bool,
    /// In an operator's words.
    detail: String,
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

    /// This host couldn't do it.
    fn local(why: &dyn ToString) -> Self {
        Self::new(Cause::Local, why.to_string())
    }
}

/// One check: the result in words, or a failure.
async fn run(check: &Check, target: &Target, passage: Option<&Passage>) -> Result<Passed, Failure> {
    match target {
        Target::Own(address) => {
            let connect = async { Ok((target::connect_from_anywhere(*address).await?, ())) };
            in_time(check, *address, connect).await
        }
        Target::Vips { backend, forwarding, vips } => {
            let mut all = Passed { drains: false, detail: String::new() };
            for vip in vips {
                let connect = async {
                    let passage =
                        passage.ok_or_else(|| Failure::local(&"no namespace to check from"))?;
                    let Led { stream, detour } =
                        passage.connect(*backend, *forwarding, *vip).await?;
                    Ok((stream, detour))
                };
                let failed = |failure: Failure| {
                    let detail = format!("VIP {}: {}", vip.address.ip(), failure.detail);
                    Failure { detail, ..failure }
                };
                let passed = in_time(check, vip.address, connect).await.map_err(failed)?;
                all = Passed { drains: all.drains || passed.drains, ..passed };
            }
            Ok(all)
        }
    }
}

/// Connects, sends the request if there is one, and judges the answer, within the check's time. What
/// comes with the connection is kept until that is closed.
async fn in_time<K>(
    check: &Check,
    address: SocketAddr,
    connect: impl Future<Output = Result<(TcpStream, K), Failure>>,
) -> Result<Passed, Failure> {
    let mut step = "connecting";
    let end = time::Instant::now() + check.timeout;
    let work = async {
        // The stream is closed before what comes with it is dropped.
        let (stream, _kept) = connect.await?;
        let Some(tls) = &check.tls else {
            step = "waiting for the answer";
            return converse(&check.kind, address, stream, end).await;
        };
        step = "in TLS handshake";
        let host = match &check.kind {
            CheckKind::Http(http) => http.host.as_deref(),
            CheckKind::None | CheckKind::Tcp(_) => None,
        };
        let stream = tls::connect(tls, host, address, stream).await?;
        step = "waiting for the answer";
        converse(&check.kind, address, stream, end).await
    };
    match time::timeout_at(end, work).await {
        Ok(result) => result,
        Err(_) => {
            let time = humantime::format_duration(check.timeout);
            Err(Failure::new(Cause::Timeout, format!("timeout after {time} {step}")))
        }
    }
}

/// What is said and heard once the backend is reached, until `end` at the latest.
async fn converse(
    kind: &CheckKind,
    address: SocketAddr,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    end: time::Instant,
) -> Result<Passed, Failure> {
    match kind {
        CheckKind::Http(http) => http::request(http, address, stream).await,
        CheckKind::Tcp(tcp) => tcp::exchange(tcp, stream, end).await,
        CheckKind::None => Ok(Passed { drains: false, detail: "connected".to_owned() }),
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
        // So the kernel calls what firewalls say by ICMP.
        ErrorKind::PermissionDenied => Failure::new(Cause::Unreachable, "forbidden by a firewall"),
        ErrorKind::TimedOut => Failure::new(Cause::Timeout, "the connection timed out"),
        ErrorKind::BrokenPipe => Failure::new(Cause::Reset, "the backend closed the connection"),
        ErrorKind::UnexpectedEof => Failure::new(Cause::Protocol, "closed without a whole answer"),
        ErrorKind::InvalidData => Failure::new(Cause::Tls, error.to_string()),
        _ => Failure::new(Cause::Unreachable, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_checked_at_once_and_spread_from_then_on() {
        let second = Duration::from_secs(1);
        let few = |phase| Turn { phase, first_round: Duration::ZERO, is_suspect: false };
        assert_eq!(few(0.5).first(), Duration::ZERO);
        assert_eq!(few(0.5).second(second), second / 2);
        assert_eq!(few(0.0).second(second), second / 20, "but not twice in a moment");
    }

    #[test]
    fn a_late_check_keeps_its_place() {
        let start = time::Instant::now();
        let at = |tenths: u64| start + Duration::from_millis(100 * tenths);
        let gap = Duration::from_secs(1);
        assert_eq!(next(at(0), gap, at(4)), at(10), "in time");
        assert_eq!(next(at(0), gap, at(15)), at(10), "late: at once");
        assert_eq!(next(at(10), gap, at(16)), at(20), "and then in its place again");
        assert_eq!(next(at(0), gap, at(47)), at(40), "missed ones aren't made up for");
        assert_eq!(next(at(3), Duration::ZERO, at(4)), at(3), "no gap, no end");
    }

    #[test]
    fn many_keep_the_places_of_their_first_round() {
        let second = Duration::from_secs(1);
        let many = |phase| Turn { phase, first_round: second, is_suspect: false };
        assert_eq!(many(0.25).first(), second / 4);
        assert_eq!(many(0.25).second(second), second);
        assert_eq!(many(0.25).second(second / 10), second / 10, "unless they hurry");
    }
}
