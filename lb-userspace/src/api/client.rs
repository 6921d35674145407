//! Asking the controller.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Request, Response};

/// How long an answer may take: a reload of a large configuration needs a while.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no controller at {0}: start one with `lb run`, or name its socket with --socket")]
    NotRunning(PathBuf),
    /// The user may not.
    #[error("{0}: permission denied; run as root, or as a member of the socket's group")]
    Permission(PathBuf),
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
    let broken = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ClientError::NotRunning(socket.to_path_buf())
        }
        io::ErrorKind::PermissionDenied => ClientError::Permission(socket.to_path_buf()),
        io::ErrorKind::WouldBlock => ClientError::Broken {
            path: socket.to_path_buf(),
            source: io::Error::other("the controller doesn't answer"),
        },
        _ => ClientError::Broken { path: socket.to_path_buf(), source },
    };
    let mut stream = UnixStream::connect(socket).map_err(broken)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(broken)?;
    let mut line = serde_json::to_string(request).map_err(io::Error::from).map_err(broken)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(broken)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(broken)?;
    serde_json::from_str(&answer).map_err(io::Error::from).map_err(broken)
}
