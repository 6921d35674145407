//! The HTTP check (RFC 9112): one request, and the status of its answer.

use std::{error::Error, net::SocketAddr, pin::pin};

use http_body_util::Empty;
use hyper::{
    Request,
    body::Bytes,
    client::conn::http1,
    header::{CONNECTION, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Cause, Failure};
use crate::config::HttpCheck;

/// Longest header of an answer that is read, in bytes.
const LONGEST_HEADER: usize = 64 * 1024;

/// Sends the request and judges the answer's status. The body isn't read.
pub(super) async fn request(
    check: &HttpCheck,
    target: SocketAddr,
    stream: TcpStream,
) -> Result<String, Failure> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(LONGEST_HEADER)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| words(&error))?;
    let request = Request::builder()
        .method(check.method.as_str())
        .uri(&check.path)
        .header(HOST, check.host.clone().unwrap_or_else(|| target.to_string()))
        .header(USER_AGENT, concat!("lb/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| Failure::new(Cause::Local, error.to_string()))?;

    // The connection does its work while the answer is awaited, and is closed once it's there. It
    // may end in the very moment that it hands the answer over.
    let mut answer = pin!(sender.send_request(request));
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        ended = connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error),
        },
    };
    let status = answer.map_err(|error| words(&error))?.status().as_u16();
    if check.expect.contains(status) {
        Ok(format!("status {status}"))
    } else {
        Err(Failure::new(Cause::Answer, format!("status {status}, wanted {}", check.expect)))
    }
}

fn words(error: &hyper::Error) -> Failure {
    if error.is_parse() {
        return Failure::new(Cause::Protocol, "the answer isn't HTTP");
    }
    // It is cancelled if the connection is closed before the request is on its way.
    if error.is_incomplete_message() || error.is_canceled() {
        return Failure::new(Cause::Protocol, "closed without a whole answer");
    }
    match error.source().and_then(|source| source.downcast_ref()) {
        Some(error) => super::words(error),
        None => Failure::new(Cause::Protocol, error.to_string()),
    }
}
