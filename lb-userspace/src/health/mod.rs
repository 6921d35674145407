//! Health checks: whether a backend is well is decided here, from what single checks say.

mod http;
mod judge;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, task::AbortHandle, time};

pub use judge::{Judge, Verdict};

use crate::config::{Check, CheckKind};

/// What a check brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What is to be thought of the backend now.
    pub verdict: Verdict,
    /// The newest result in words.
    pub detail: String,
    /// How long the check took.
    pub duration: Duration,
}

/// Checks one backend again and again, until it is dropped.
#[derive(Debug)]
pub struct Checker(AbortHandle);

impl Checker {
    /// Starts to check, at once and from then on at intervals, within a tokio runtime. `report` is
    /// called after every check; `verdict` is what was thought before.
    ///
    /// `phase`, from 0 to 1, spreads the checks of many backends over the interval.
    pub fn start<F: Future<Output = ()> + Send>(
        check: Check,
        backend: SocketAddr,
        verdict: Verdict,
        phase: f64,
        report: impl Fn(Report) -> F + Send + 'static,
    ) -> Self {
        let task = tokio::spawn(async move {
            let target = SocketAddr::new(backend.ip(), check.port.unwrap_or(backend.port()));
            let mut judge = Judge::new(verdict);
            let mut spread = Some(phase);
            loop {
                let start = Instant::now();
                let outcome = run(&check, target).await;
                let duration = start.elapsed();
                let verdict = judge.record(outcome.is_ok(), check.rise, check.fall);
                let detail = outcome.unwrap_or_else(|failure| failure);
                report(Report { verdict, detail, duration }).await;

                let mut interval = interval(&check, &judge);
                if let Some(phase) = spread.take() {
                    interval = interval.mul_f64(phase.clamp(0.05, 1.0));
                }
                time::sleep(interval.saturating_sub(duration)).await;
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

/// One check: the result in words, as a success or a failure.
async fn run(check: &Check, target: SocketAddr) -> Result<String, String> {
    let mut step = "connecting";
    let work = async {
        if check.kind == CheckKind::None {
            return Ok("not checked".to_owned());
        }
        let stream = TcpStream::connect(target).await.map_err(|error| words(&error))?;
        match &check.kind {
            CheckKind::Http(http) => {
                step = "waiting for the answer";
                http::request(http, target, stream).await
            }
            CheckKind::None | CheckKind::Tcp => Ok("connected".to_owned()),
        }
    };
    match time::timeout(check.timeout, work).await {
        Ok(result) => result,
        Err(_) => {
            Err(format!("timeout after {} {step}", humantime::format_duration(check.timeout)))
        }
    }
}

/// An error of a connection in an operator's words.
fn words(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        ErrorKind::ConnectionReset => "connection reset".to_owned(),
        ErrorKind::HostUnreachable => "host unreachable".to_owned(),
        ErrorKind::NetworkUnreachable => "network unreachable".to_owned(),
        _ => error.to_string(),
    }
}
