//! What in a check's section contradicts something else there, or means nothing beside it.

use std::ops::Range;

use hyper::http::uri::Authority;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{StatusRanges, file, validate::Validator};

/// Keys of requests by HTTP, of TLS, and of what is said and heard by TCP: name, where it stands, whether it is there.
struct Keys {
    http: Vec<(&'static str, Range<usize>)>,
    tls: Vec<(&'static str, Range<usize>)>,
    tcp: Vec<(&'static str, Range<usize>)>,
    any: Vec<(&'static str, Range<usize>)>,
}

/// Those of them that are written.
macro_rules! written {
    ($check:ident: $($name:ident),*) => {
        [$((stringify!($name), $check.$name.as_ref().map(toml::Spanned::span))),*]
            .into_iter()
            .filter_map(|(name, span)| Some((name, span?)))
            .collect()
    };
}

impl Keys {
    fn new(check: &file::Check) -> Self {
        let mut keys = Self {
            http: written!(
                check: method, path, http_version, host, body, expect_header, expect_body, drain_on
            ),
            tls: written!(check: verify, ca_file, certificate, certificate_key),
            tcp: written!(check: send),
            any: written!(check: expect, port, rise, fall, fast_interval, down_interval),
        };
        keys.http.extend(check.headers.keys().map(|name| ("headers", name.span())));
        keys
    }
}

impl Validator {
    /// Refuses keys that mean nothing for a check of that type.
    pub(super) fn refuse_check_keys(&mut self, check: &file::Check, kind: &str) {
        let keys = Keys::new(check);
        let (others, hint) = match kind {
            "none" => (
                vec![&keys.http, &keys.tls, &keys.tcp, &keys.any],
                "leave it out, or write another type, as in type = \"http\"",
            ),
            "tcp" => {
                (vec![&keys.http, &keys.tls], "leave it out, or write type = \"http\" or \"https\"")
            }
            "https" => (vec![&keys.tcp], "leave it out, or write type = \"tcp\""),
            _ => (
                vec![&keys.tls, &keys.tcp],
                "leave it out, or write type = \"https\" for what belongs to TLS, \"tcp\" for send",
            ),
        };
        for (name, span) in others.into_iter().flatten() {
            let message = format!("{name} means nothing for a check of type \"{kind}\"");
            self.problem(span.clone(), message, hint);
        }
        if let Some(expect) = check.expect.as_ref().filter(|_| kind == "tcp")
            && expect.get_ref().contains(['-', ','])
            && StatusRanges::parse(expect.get_ref()).is_ok()
        {
            self.problem(
                expect.span(),
                "these are status codes, and a check of type \"tcp\" expects a regular expression",
                "write type = \"http\", or what the backend says first, as in \"^220 \"",
            );
        }
        if check.observe.as_ref().is_none_or(|observe| observe.get_ref() == "none") {
            let unused: Vec<_> = written!(check: observe_failures, observe_window);
            for (name, span) in unused {
                let message = format!("{name} means nothing without observe");
                self.problem(span, message, "write observe = \"connect\", or leave it out");
            }
        }
    }

    /// Refuses what no request can be made of, and answers that can't be or mean two things.
    pub(super) fn refuse_http(&mut self, check: &file::Check, is_https: bool) {
        if let Some(path) = &check.path
            && path.get_ref().starts_with('/')
            && !path.get_ref().bytes().all(may_be_in_path)
        {
            self.problem(
                path.span(),
                format!("\"{}\" is no path", path.get_ref()),
                "write signs that a path can't have by their codes, as in \"/%7Bid%7D\"",
            );
        }
        if let Some(host) = check.host.as_ref().filter(|host| !host.get_ref().is_empty())
            && !is_host(host.get_ref(), is_https)
        {
            self.problem(
                host.span(),
                format!("\"{}\" is no host name", host.get_ref()),
                "write a host name, as in \"cloud.example.com\"",
            );
        }
        if let (Some(method), Some(body)) = (&check.method, &check.expect_body)
            && method.get_ref() == "HEAD"
            && !body.get_ref().is_empty()
        {
            let message = "there is no body in the answer to HEAD";
            self.problem(body.span(), message, "write method = \"GET\", or leave it out");
        }
        if let (Some(expect), Some(drain_on)) = (&check.expect, &check.drain_on)
            && let Ok(wanted) = StatusRanges::parse(expect.get_ref())
            && let Ok(draining) = StatusRanges::parse(drain_on.get_ref())
            && let Some(both) =
                (100..600).find(|code| wanted.contains(*code) && draining.contains(*code))
        {
            self.problem(
                drain_on.span(),
                format!("status {both} would drain a backend, and is also expected"),
                "leave it out of one of them",
            );
        }
    }
}

/// Whether that may stand in a request's path and query (RFC 3986, sections 3.3 and 3.4).
fn may_be_in_path(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/?-._~%!$&'()*+,;=:@".contains(&byte)
}

/// Whether that can stand in a Host header and, under TLS, be asked for.
fn is_host(host: &str, is_https: bool) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let is_plain = !host.contains('@') && !name.is_empty();
    is_plain && (!is_https || ServerName::try_from(name.to_owned()).is_ok())
}
