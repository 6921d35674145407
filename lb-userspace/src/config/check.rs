//! What a file says of health checks.

use std::time::Duration;

use toml::Spanned;

use super::{Check, CheckKind, HttpCheck, StatusRanges, file, validate::Validator};

impl Validator {
    pub(super) fn check(&mut self, check: &file::Check) -> Check {
        let kind =
            self.choice(check.kind.as_ref(), "check type", &["http", "tcp", "none"], &["https"]);
        self.unavailable(
            check.expect_body.as_ref().map(Spanned::span),
            "expect_body",
            "use expect with status codes",
        );
        let drain_on = check.drain_on.as_ref().filter(|codes| !codes.get_ref().is_empty());
        self.unavailable(drain_on.map(Spanned::span), "drain_on", "leave it out");
        self.unavailable(check.ca_file.as_ref().map(Spanned::span), "ca_file", "leave it out");
        self.unavailable(check.verify.as_ref().map(Spanned::span), "verify", "leave it out");
        let second = Duration::from_secs(1);
        let interval = self.duration(check.interval.as_ref(), 2 * second);
        let port = self.number(check.port.as_ref(), 0, 0..=65_535, "port") as u16;
        Check {
            kind: match kind {
                "none" => CheckKind::None,
                "tcp" => CheckKind::Tcp,
                _ => CheckKind::Http(self.http_check(check)),
            },
            interval,
            fast_interval: self.optional_duration(check.fast_interval.as_ref()),
            down_interval: self.optional_duration(check.down_interval.as_ref()),
            timeout: self.duration(check.timeout.as_ref(), 2 * second),
            rise: self.number(check.rise.as_ref(), 2, 1..=1000, "rise"),
            fall: self.number(check.fall.as_ref(), 3, 1..=1000, "fall"),
            port: (port != 0).then_some(port),
        }
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
            && (!path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            self.problem(
                written.span(),
                format!("\"{path}\" is no path"),
                "write a path that begins with a slash, without blanks, as in \"/client/\"",
            );
        }
        let host = check.host.as_ref().filter(|host| !host.get_ref().is_empty());
        if let Some(written) = host
            && !written.get_ref().bytes().all(|byte| byte.is_ascii_graphic())
        {
            self.problem(
                written.span(),
                format!("\"{}\" is no host name", written.get_ref()),
                "write a host name, as in \"cloud.example.com\"",
            );
        }
        let expect =
            check.expect.as_ref().and_then(|expect| self.value(expect, StatusRanges::parse));
        HttpCheck {
            method: method.to_owned(),
            path: path.to_owned(),
            host: host.map(|host| host.get_ref().clone()),
            expect: expect.unwrap_or_else(StatusRanges::success_and_redirection),
        }
    }
}
