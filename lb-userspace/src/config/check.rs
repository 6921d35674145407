//! Health checks: what a file says of them, and what it means.

use std::{fmt, time::Duration};

use hyper::header::{HeaderName, HeaderValue};
use toml::Spanned;

use super::{Pattern, StatusRanges, Tls, file, validate::Validator, values};

/// How backends are checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// By what.
    pub kind: CheckKind,
    /// Under TLS; `None`: without.
    pub tls: Option<Tls>,
    /// Time between the starts of two checks.
    pub interval: Duration,
    /// The same while a state change is under way; `None`: as [`Self::interval`].
    pub fast_interval: Option<Duration>,
    /// The same while down; `None`: as [`Self::interval`].
    pub down_interval: Option<Duration>,
    /// How long a check may take.
    pub timeout: Duration,
    /// Passed checks in a row that bring a backend up.
    pub rise: u32,
    /// Failed checks in a row that take a backend down.
    pub fall: u32,
    /// The port that is checked; `None`: the backend's own.
    pub port: Option<u16>,
    /// What connections of clients say of a backend, beside the check.
    pub observe: Option<Observe>,
    /// A program at the backend that says how it is, beside the check.
    pub agent: Option<Agent>,
}

/// What a check does.
#[derive(Clone, Debug, PartialEq)]
pub enum CheckKind {
    /// Nothing: the backend is always up.
    None,
    /// Connects.
    Tcp(TcpCheck),
    /// Sends a request.
    Http(Box<HttpCheck>),
}

/// What is said and heard once connected.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TcpCheck {
    /// What is sent.
    pub send: Option<String>,
    /// What must be among the first that comes back.
    pub expect: Option<Pattern>,
}

/// An HTTP request and what its answer must be.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpCheck {
    /// Method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The version that is spoken.
    pub version: HttpVersion,
    /// Host header, and the name that is asked for in TLS; `None`: the address that is checked.
    pub host: Option<String>,
    /// More headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What is sent after the headers.
    pub body: Option<String>,
    /// Status codes of a backend that is well.
    pub expect: StatusRanges,
    /// Status codes of one that takes no new flows, but goes on with those it has.
    pub drain_on: Option<StatusRanges>,
    /// What a header must hold.
    pub expect_header: Option<(HeaderName, Pattern)>,
    /// What the body must hold.
    pub expect_body: Option<Pattern>,
}

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// RFC 1945.
    Http10,
    /// RFC 9112.
    Http11,
}

impl fmt::Display for HttpVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Http10 => "1.0",
            Self::Http11 => "1.1",
        })
    }
}

/// When connections that a backend doesn't take, as the data path sees, take it out before the next check does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observe {
    /// So many, with none that it answered between them.
    pub failures: u32,
    /// Within so long.
    pub window: Duration,
}

/// HAProxy's agent check: whoever connects is told a line of words.
#[derive(Clone, Debug, PartialEq)]
pub struct Agent {
    /// Its port.
    pub port: u16,
    /// Time between two questions.
    pub interval: Duration,
    /// What is sent first.
    pub send: Option<String>,
}

impl Validator {
    pub(super) fn check(&mut self, check: &file::Check) -> Check {
        let kinds = ["http", "https", "tcp", "none"];
        let kind = self.choice(check.kind.as_ref(), "check type", &kinds);
        self.refuse_check_keys(check, kind);
        let tls = (kind == "https").then(|| self.tls(check)).flatten();
        let second = Duration::from_secs(1);
        let interval = self.duration(check.interval.as_ref(), 2 * second);
        let port = self.number(check.port.as_ref(), 0, 0..=65_535, "port") as u16;
        Check {
            kind: match kind {
                "none" => CheckKind::None,
                "tcp" => CheckKind::Tcp(TcpCheck {
                    send: check.send.as_ref().map(|send| send.get_ref().clone()),
                    expect: check
                        .expect
                        .as_ref()
                        .and_then(|expect| self.value(expect, Pattern::parse)),
                }),
                _ => {
                    self.refuse_http(check, kind == "https");
                    CheckKind::Http(Box::new(self.http_check(check)))
                }
            },
            tls,
            interval,
            fast_interval: self.optional_duration(check.fast_interval.as_ref()),
            down_interval: self.optional_duration(check.down_interval.as_ref()),
            timeout: self.duration(check.timeout.as_ref(), 2 * second),
            rise: self.number(check.rise.as_ref(), 2, 1..=1000, "rise"),
            fall: self.number(check.fall.as_ref(), 3, 1..=1000, "fall"),
            port: (port != 0).then_some(port),
            observe: self.observe(check),
            agent: self.agent(check, interval),
        }
    }

    fn observe(&mut self, check: &file::Check) -> Option<Observe> {
        let kind = self.choice(check.observe.as_ref(), "observe", &["none", "connect"]);
        let observe = Observe {
            failures: self.number(
                check.observe_failures.as_ref(),
                3,
                1..=1_000_000,
                "observe_failures",
            ),
            window: self.duration(check.observe_window.as_ref(), 60 * Duration::from_secs(1)),
        };
        (kind == "connect").then_some(observe)
    }

    fn agent(&mut self, check: &file::Check, interval: Duration) -> Option<Agent> {
        let Some(port) = &check.agent_port else {
            for key in [&check.agent_interval, &check.agent_send].into_iter().flatten() {
                self.problem(key.span(), "no agent_port", "write one, or leave it out");
            }
            return None;
        };
        Some(Agent {
            port: self.number(Some(port), 1, 1..=65_535, "agent_port") as u16,
            interval: self.duration(check.agent_interval.as_ref(), interval),
            send: check.agent_send.as_ref().map(|send| send.get_ref().clone()),
        })
    }

    fn http_check(&mut self, check: &file::Check) -> HttpCheck {
        let method = check.method.as_ref().map_or("GET", |method| method.get_ref());
        if let Some(written) = &check.method
            && (method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase()))
        {
            self.problem(
                written.span(),
                format!("\"{method}\" is no HTTP method"),
                "write \"GET\", \"HEAD\" or \"OPTIONS\"",
            );
        }
        let path = check.path.as_ref().map_or("/client/", |path| path.get_ref());
        if let Some(written) = &check.path
            && !path.starts_with('/')
        {
            self.problem(
                written.span(),
                format!("\"{path}\" is no path"),
                "write a path that begins with a slash, as in \"/client/\"",
            );
        }
        let version = self.choice(check.http_version.as_ref(), "http_version", &["1.1", "1.0"]);
        let host = check.host.as_ref().filter(|host| !host.get_ref().is_empty());
        let written = |text: &&Spanned<String>| !text.get_ref().is_empty();
        let expect =
            check.expect.as_ref().and_then(|expect| self.value(expect, StatusRanges::parse));
        let drain_on = check.drain_on.as_ref().filter(written);
        let expect_header = check.expect_header.as_ref().filter(written);
        let expect_body = check.expect_body.as_ref().filter(written);
        HttpCheck {
            method: method.to_owned(),
            path: path.to_owned(),
            version: if version == "1.0" { HttpVersion::Http10 } else { HttpVersion::Http11 },
            host: host.map(|host| host.get_ref().clone()),
            headers: self.headers(check),
            body: check.body.as_ref().map(|body| body.get_ref().clone()),
            expect: expect.unwrap_or_else(StatusRanges::success_and_redirection),
            drain_on: drain_on.and_then(|codes| self.value(codes, StatusRanges::parse)),
            expect_header: expect_header
                .and_then(|header| self.value(header, values::header_pattern)),
            expect_body: expect_body.and_then(|body| self.value(body, Pattern::parse)),
        }
    }

    fn headers(&mut self, check: &file::Check) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = Vec::new();
        for (name, value) in &check.headers {
            let parsed = self.value(name, values::header_name);
            let text = self.value(value, values::header_value);
            headers.extend(parsed.zip(text));
        }
        headers
    }
}
