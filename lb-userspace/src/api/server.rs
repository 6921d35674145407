//! Answering clients.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time,
};

use super::{Request, Response};

/// Longest request, in bytes.
const LONGEST_REQUEST: u64 = 4096;
/// How long a client may take to write it.
const PATIENCE: Duration = Duration::from_secs(5);

/// A request, and where its answer goes.
pub type Call = (Request, oneshot::Sender<Response>);

/// Listens on a socket, with mode 0660, within a tokio runtime; requests go to `calls`. A socket
/// that nobody listens on any longer is replaced: the caller makes sure that nobody does.
///
/// # Errors
///
/// The socket can't be made.
pub fn serve(path: &Path, calls: mpsc::Sender<Call>) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let calls = calls.clone();
                    tokio::spawn(async move {
                        if let Err(error) = answer(stream, &calls).await {
                            tracing::debug!(%error, "a client of the control socket");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the control socket");
                    time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(())
}

async fn answer(mut stream: UnixStream, calls: &mpsc::Sender<Call>) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(LONGEST_REQUEST));
    time::timeout(PATIENCE, reader.read_line(&mut line)).await??;
    let response = match serde_json::from_str(&line) {
        Ok(request) => {
            let (sender, receiver) = oneshot::channel();
            match calls.send((request, sender)).await {
                Ok(()) => receiver
                    .await
                    .unwrap_or_else(|_| Response::Failed("the controller is stopping".to_owned())),
                Err(_) => Response::Failed("the controller is stopping".to_owned()),
            }
        }
        Err(error) => Response::Refused(format!("no such request: {error}")),
    };
    let mut text = serde_json::to_string(&response)?;
    text.push('\n');
    writer.write_all(text.as_bytes()).await
}
