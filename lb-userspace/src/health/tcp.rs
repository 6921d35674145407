//! The TCP check: to be connected, and perhaps to say something and hear something back.

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{self, Instant},
};

use super::{Cause, Failure, Passed, words};
use crate::config::{Pattern, TcpCheck};

/// So much of what comes back is looked at, in bytes.
const LONGEST_ANSWER: usize = 16 * 1024;

/// Says and hears what the check wants, until `end` at the latest.
pub(super) async fn exchange(
    check: &TcpCheck,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    end: Instant,
) -> Result<Passed, Failure> {
    if let Some(send) = &check.send {
        stream.write_all(send.as_bytes()).await.map_err(|error| words(&error))?;
    }
    let Some(pattern) = &check.expect else {
        return Ok(Passed { drains: false, detail: "connected".to_owned() });
    };
    let mut heard = Vec::new();
    let mut buffer = [0; 1024];
    while heard.len() < LONGEST_ANSWER {
        let count = match time::timeout_at(end, stream.read(&mut buffer)).await {
            Ok(count) => count.map_err(|error| words(&error))?,
            // Nothing came: who waits for this tells that.
            Err(_) if heard.is_empty() => std::future::pending().await,
            Err(_) => return Err(unwanted(Cause::Timeout, &heard, pattern)),
        };
        heard.extend_from_slice(&buffer[..count]);
        if pattern.is_in(&heard) {
            return Ok(Passed { drains: false, detail: format!("answered with {pattern}") });
        }
        if count == 0 {
            break;
        }
    }
    Err(unwanted(Cause::Answer, &heard, pattern))
}

fn unwanted(cause: Cause, heard: &[u8], pattern: &Pattern) -> Failure {
    let heard = String::from_utf8_lossy(heard);
    let heard: String = heard.chars().take(40).collect();
    Failure::new(cause, format!("answered {heard:?}, wanted {pattern}"))
}
