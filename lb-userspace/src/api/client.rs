//! Asking the controller.

use std::{
    io::{self, BufRead, BufReader, ErrorKind::UnexpectedEof, Write},
    ops::ControlFlow::{self, Break, Continue},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Request, Response};
use crate::journal::Event;

/// How long an answer to a reload may take: a large configuration needs a while.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long any other may take: it may have to wait for a reload.
const TIMEOUT: Duration = Duration::from_secs(10);
/// But how it is, it says at once.
const STATUS_TIMEOUT: Duration = Duration::from_secs(3);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no controller at {0}: start one with `lb run`, or name its socket with --socket")]
    NotRunning(PathBuf),
    /// The user may not.
    #[error("{0}: permission denied; run as root, or as a member of the socket's group")]
    Permission(PathBuf),
    /// It doesn't answer in time.
    #[error(
        "{0}: the controller doesn't answer; see whether its process hangs (`ps`, `journalctl -u lb`): forwarding \
         goes on without it"
    )]
    Silent(PathBuf),
    /// It has gone meanwhile.
    #[error("{0}: the controller ended before it answered; `lb status` shows how it is")]
    Ended(PathBuf),
    /// The connection broke.
    #[error("{path}: {source}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Sends a request and waits for the answer.
///
/// # Errors
///
/// There is no controller, the user may not speak to it, or it doesn't answer.
pub fn call(socket: &Path, request: &Request) -> Result<Response, ClientError> {
    let timeout = match request {
        Request::Status => STATUS_TIMEOUT,
        Request::Reload => RELOAD_TIMEOUT,
        _ => TIMEOUT,
    };
    exchange(socket, request, Some(timeout), |response| Break(Some(response)))
        .and_then(|response| response.ok_or(UnexpectedEof.into()))
        .map_err(|error| explain(socket, error))
}

/// Asks for the latest events, and calls `show` with each; with `follow`, goes on with new ones until the
/// controller ends.
///
/// # Errors
///
/// As of [`call`].
pub fn events(
    socket: &Path,
    follow: bool,
    mut show: impl FnMut(&Event),
) -> Result<(), ClientError> {
    let timeout = (!follow).then_some(TIMEOUT);
    let other = exchange(socket, &Request::Events { follow }, timeout, |response| match response {
        Response::Event(event) => {
            show(&event);
            Continue(())
        }
        other => Break(Some(other)),
    });
    match other.map_err(|error| explain(socket, error))? {
        Some(other) => {
            let source = io::Error::other(format!("the controller answered {other:?}"));
            Err(ClientError::Broken { path: socket.to_path_buf(), source })
        }
        None => Ok(()),
    }
}

/// Sends a request, and calls `take` with each answer until that has what it wants, or there are no more.
fn exchange(
    socket: &Path,
    request: &Request,
    timeout: Option<Duration>,
    mut take: impl FnMut(Response) -> ControlFlow<Option<Response>>,
) -> io::Result<Option<Response>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(timeout)?;
    stream.set_write_timeout(timeout)?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    for answer in BufReader::new(stream).lines() {
        if let Break(result) = take(serde_json::from_str(&answer?)?) {
            return Ok(result);
        }
    }
    Ok(None)
}

fn explain(socket: &Path, error: io::Error) -> ClientError {
    let path = socket.to_path_buf();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning(path),
        io::ErrorKind::PermissionDenied => ClientError::Permission(path),
        io::ErrorKind::WouldBlock => ClientError::Silent(path),
        UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            ClientError::Ended(path)
        }
        _ => ClientError::Broken { path, source: error },
    }
}
