//! Answering clients.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    time,
};

use super::{Request, Response, peer::Peer};
use crate::journal::Journal;

/// Longest request, in bytes.
const LONGEST_REQUEST: u64 = 4096;
/// How long a client may take to write it, and to read an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most clients at a time; others wait until one of them is done.
const MOST_CLIENTS: usize = 128;

/// A request, and where its answer goes.
pub type Call = (Request, oneshot::Sender<Response>);

/// Listens on a socket, with mode 0660, within a tokio runtime; requests go to `calls`, but those for events
/// are answered from the journal, and changes are only for those whose the socket is. A socket that nobody listens on any longer is replaced.
///
/// # Errors
///
/// The socket can't be made, somebody listens there, or it is something else.
pub fn serve(path: &Path, calls: mpsc::Sender<Call>, journal: Journal) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    remove_abandoned(path)?;
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    let path: Arc<Path> = path.into();
    tokio::spawn(async move {
        let room = Arc::new(Semaphore::new(MOST_CLIENTS));
        let mut is_failing = false;
        // It is never closed.
        while let Ok(place) = Arc::clone(&room).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    is_failing = false;
                    let (calls, journal) = (calls.clone(), journal.clone());
                    let path = Arc::clone(&path);
                    tokio::spawn(async move {
                        if let Err(error) = answer(stream, &path, &calls, &journal).await {
                            tracing::debug!(%error, "a client of the control socket");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(%error, "the control socket takes nobody for now");
                    }
                    time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(())
}

/// Removes a socket that nobody listens on any longer.
fn remove_abandoned(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::other("something else than a socket is there"));
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("somebody listens there, such as another lb")),
    }
}

async fn answer(
    mut stream: UnixStream,
    socket: &Path,
    calls: &mpsc::Sender<Call>,
    journal: &Journal,
) -> io::Result<()> {
    let peer = Peer::of(&stream)?;
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(LONGEST_REQUEST));
    time::timeout(PATIENCE, reader.read_line(&mut line)).await??;
    let request = match serde_json::from_str::<Request>(&line) {
        Ok(Request::Events { follow }) => {
            return tell(&mut reader, &mut writer, journal, follow).await;
        }
        Ok(request) => request,
        Err(error) => {
            let refused = Response::Refused(format!("no such request: {error}"));
            return write(&mut writer, &refused).await;
        }
    };
    if let Some(change) = request.change() {
        if let Err(refused) = peer.demand_may_change(socket) {
            tracing::warn!(%change, "{refused}");
            return write(&mut writer, &Response::Refused(refused)).await;
        }
        tracing::info!(%change, "asked for by {peer}");
    }
    let (sender, receiver) = oneshot::channel();
    let stopping = || Response::Failed("the controller is stopping".to_owned());
    let response = match calls.send((request, sender)).await {
        Ok(()) => receiver.await.unwrap_or_else(|_| stopping()),
        Err(_) => stopping(),
    };
    write(&mut writer, &response).await
}

/// Tells the journal's events, and goes on with new ones until the client has gone.
async fn tell(
    reader: &mut (impl AsyncReadExt + Unpin),
    writer: &mut (impl AsyncWriteExt + Unpin),
    journal: &Journal,
    follow: bool,
) -> io::Result<()> {
    let mut count = journal.watch();
    let mut told = 0;
    loop {
        count.mark_unchanged();
        let (events, number) = journal.after(told);
        told = number;
        for event in events {
            write(writer, &Response::Event(event)).await?;
        }
        if !follow {
            return Ok(());
        }
        tokio::select! {
            changed = count.changed() => if changed.is_err() { return Ok(()) },
            _ = reader.read_u8() => return Ok(()),
        }
    }
}

async fn write(writer: &mut (impl AsyncWriteExt + Unpin), response: &Response) -> io::Result<()> {
    let mut text = serde_json::to_string(response)?;
    text.push('\n');
    time::timeout(PATIENCE, writer.write_all(text.as_bytes())).await?
}
