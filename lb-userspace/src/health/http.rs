//! The HTTP check (RFC 9112): one request, and what its answer must be.

use std::{error::Error, net::SocketAddr, pin::pin};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, Version,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{CONNECTION, HOST, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Cause, Failure, Passed};
use crate::config::{HttpCheck, HttpVersion, Pattern};

/// Longest header of an answer that is read, in bytes.
const LONGEST_HEADER: usize = 64 * 1024;
/// So much of a body is looked at, in bytes.
const LONGEST_BODY: usize = 64 * 1024;

/// Sends the request and judges the answer. The body is only read where something is wanted of it.
pub(super) async fn request(
    check: &HttpCheck,
    target: SocketAddr,
    stream: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<Passed, Failure> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(LONGEST_HEADER)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| words(&error))?;
    let request =
        make(check, target).map_err(|error| Failure::new(Cause::Local, error.to_string()))?;

    // The connection does its work while the answer is awaited, and is closed once it's there. It
    // may end in the very moment that it hands the answer over.
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| words(&error))?;
        judge(check, answer).await
    };
    let mut exchange = pin!(exchange);
    tokio::select! {
        biased;
        result = &mut exchange => result,
        ended = connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(words(&error)),
        },
    }
}

fn make(check: &HttpCheck, target: SocketAddr) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let version = match check.version {
        HttpVersion::Http10 => Version::HTTP_10,
        HttpVersion::Http11 => Version::HTTP_11,
    };
    let body = check.body.clone().unwrap_or_default();
    let request =
        Request::builder().method(check.method.as_str()).uri(&check.path).version(version);
    let mut request = request.body(Full::from(body))?;
    let headers = request.headers_mut();
    // The older version doesn't know it, but many servers want it.
    if check.host.is_some() || check.version == HttpVersion::Http11 {
        let host = check.host.clone().unwrap_or_else(|| target.to_string());
        headers.insert(HOST, HeaderValue::try_from(host)?);
    }
    let agent = concat!("lb/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    // What the configuration says goes before what is usual, and may be said twice.
    for (name, _) in &check.headers {
        headers.remove(name);
    }
    for (name, value) in &check.headers {
        headers.append(name, value.clone());
    }
    Ok(request)
}

async fn judge(check: &HttpCheck, answer: Response<Incoming>) -> Result<Passed, Failure> {
    let status = answer.status().as_u16();
    let said = format!("status {status}");
    if check.drain_on.as_ref().is_some_and(|codes| codes.contains(status)) {
        return Ok(Passed { drains: true, detail: said });
    }
    let wrong = |wanted: String| Failure::new(Cause::Answer, format!("{said}, wanted {wanted}"));
    if !check.expect.contains(status) {
        return Err(wrong(check.expect.to_string()));
    }
    if let Some((name, pattern)) = &check.expect_header {
        let values = answer.headers().get_all(name);
        if !values.iter().any(|value| pattern.is_in(value.as_bytes())) {
            return Err(wrong(format!("header {name}: {pattern}")));
        }
    }
    if let Some(pattern) = &check.expect_body
        && !holds(answer.into_body(), pattern).await?
    {
        return Err(wrong(format!("a body with {pattern}")));
    }
    Ok(Passed { drains: false, detail: said })
}

/// Whether the first of a body holds what is wanted. It isn't read further than to that.
async fn holds(mut body: Incoming, pattern: &Pattern) -> Result<bool, Failure> {
    let mut text = Vec::new();
    while text.len() < LONGEST_BODY
        && let Some(frame) = body.frame().await
    {
        let frame = frame.map_err(|error| words(&error))?;
        text.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
        text.truncate(LONGEST_BODY);
        if pattern.is_in(&text) {
            return Ok(true);
        }
    }
    // One that wants its end, or nothing at all.
    Ok(pattern.is_in(&text))
}

fn words(error: &hyper::Error) -> Failure {
    if error.is_parse() {
        return Failure::new(Cause::Protocol, "the answer isn't HTTP");
    }
    // It is cancelled if the connection is closed before the request is on its way.
    if error.is_incomplete_message() || error.is_canceled() {
        return Failure::new(Cause::Protocol, "closed without a whole answer");
    }
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(error) = inner.downcast_ref() {
            return super::words(error);
        }
        source = inner.source();
    }
    Failure::new(Cause::Protocol, error.to_string())
}
