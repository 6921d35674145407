//! Answering clients.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
    },
    path::Path,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
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
/// Most clients that follow events; others are refused.
const MOST_FOLLOWERS: usize = 64;
/// How often it is looked whether who waits for an answer is still there.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

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
        let room = Arc::new(Semaphore::new(MOST_CLIENTS + MOST_FOLLOWERS));
        let followers = Arc::new(Semaphore::new(MOST_FOLLOWERS));
        let mut is_failing = false;
        // It is never closed.
        while let Ok(place) = Arc::clone(&room).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    is_failing = false;
                    let (calls, journal) = (calls.clone(), journal.clone());
                    let (path, followers) = (Arc::clone(&path), Arc::clone(&followers));
                    tokio::spawn(async move {
                        let journal = (&journal, &*followers);
                        if let Err(error) = answer(stream, &path, &calls, journal).await {
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
    (journal, followers): (&Journal, &Semaphore),
) -> io::Result<()> {
    let peer = Peer::of(&stream)?;
    let end = stream.as_fd().try_clone_to_owned()?;
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(LONGEST_REQUEST));
    time::timeout(PATIENCE, reader.read_line(&mut line)).await??;
    let request = match serde_json::from_str::<Request>(&line) {
        Ok(Request::Events { follow }) => {
            let place = follow.then(|| followers.try_acquire());
            if let Some(Err(_)) = place {
                let why = format!("{MOST_FOLLOWERS} clients follow events already");
                return write(&mut writer, &Response::Refused(why)).await;
            }
            return tell(&mut reader, &mut writer, journal, follow).await;
        }
        Ok(request) => request,
        Err(error) => {
            let refused = Response::Refused(format!("no such request: {error}"));
            return write(&mut writer, &refused).await;
        }
    };
    if has_hung_up(&end) {
        // It may have waited in vain for a process that was stopped.
        return Ok(());
    }
    if let Some(change) = request.change() {
        if let Err(refused) = peer.demand_may_change(socket) {
            tracing::warn!(%change, "{refused}");
            return write(&mut writer, &Response::Refused(refused)).await;
        }
        tracing::info!(%change, "asked for by {peer}");
    }
    let (sender, receiver) = oneshot::channel();
    let stopping = || Response::Failed("the controller is stopping".to_owned());
    let asked = async {
        match calls.send((request, sender)).await {
            Ok(()) => receiver.await.unwrap_or_else(|_| stopping()),
            Err(_) => stopping(),
        }
    };
    let mut asked = pin!(asked);
    loop {
        match time::timeout(LOOK_INTERVAL, &mut asked).await {
            Ok(response) => return write(&mut writer, &response).await,
            // What it asked for isn't done then, if it isn't yet.
            Err(_) if has_hung_up(&end) => return Ok(()),
            Err(_) => {}
        }
    }
}

/// Whether the other end is closed, and not only done with writing.
fn has_hung_up(stream: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|count| count > 0)
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
