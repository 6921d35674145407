//! What comes from outside, and becomes events of the controller's loop.

use std::{
    fs::{self, File},
    io::{self, Read},
    net::IpAddr,
    os::fd::OwnedFd,
    path::Path,
    time::Duration,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::AbortHandle,
    time,
};

use super::{controller::Event, path_mtu, start::StartError};
use crate::netlink;

/// Tells what the network looks like, and where those addresses are, whenever that changes.
pub(super) fn watch_network(addresses: watch::Receiver<Vec<IpAddr>>, events: mpsc::Sender<Event>) {
    tokio::spawn(async move {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(network) = receiver.recv().await {
                if events.send(Event::Network(network)).await.is_err() {
                    return;
                }
            }
        });
        if let Err(error) = netlink::watch(addresses, |network| sender.send(network).is_ok()).await
        {
            tracing::error!(%error, "the network is no longer watched; restart the controller");
        }
    });
}

/// Tells what routers say of how long datagrams may be.
pub(super) fn watch_path_mtus(events: &mpsc::Sender<Event>) {
    for is_ipv4 in [true, false] {
        let events = events.clone();
        tokio::spawn(async move {
            // A router says it again if there is no room for it now.
            let heard = |path_mtu| {
                !matches!(
                    events.try_send(Event::PathMtu(path_mtu)),
                    Err(mpsc::error::TrySendError::Closed(_))
                )
            };
            if let Err(error) = path_mtu::watch(is_ipv4, heard).await {
                tracing::warn!(%error, "what routers say of ipip's and gue's path MTU isn't heard");
            }
        });
    }
}

/// Tells of SIGINT, SIGTERM and SIGHUP.
///
/// # Errors
///
/// The kernel refuses.
pub(super) fn watch_signals(events: &mpsc::Sender<Event>) -> Result<(), StartError> {
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut signals = signal(kind)
            .map_err(|source| StartError::System { what: "signals".to_owned(), source })?;
        let events = events.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                let event = if kind == SignalKind::hangup() { Event::Reload } else { Event::Stop };
                if events.send(event).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

/// Watches a file until it is dropped, and asks for a reload when its text has changed.
pub(super) struct FileWatch(AbortHandle);

/// How long a file must have been left alone: an editor may write it in parts.
const SETTLED: Duration = Duration::from_millis(200);

impl FileWatch {
    /// Starts, within a tokio runtime. It is the file's directory that is watched, since editors replace files, and
    /// so do those who mount configurations into containers.
    ///
    /// `text` is what was read of it last.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub(super) fn start(file: &Path, text: &str, events: mpsc::Sender<Event>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let directory = match file.parent() {
            Some(directory) if !directory.as_os_str().is_empty() => directory,
            _ => Path::new("."),
        };
        let changes = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE;
        inotify.add_watch(directory, changes)?;
        let inotify = File::from(OwnedFd::from(inotify));
        // SAFETY: the file stays in there, and open, for as long as it is registered.
        let inotify = unsafe { AsyncFd::register(inotify) }?;
        let file = file.to_path_buf();
        let mut known = text.as_bytes().to_vec();
        let task = tokio::spawn(async move {
            loop {
                if let Err(error) = drain(&inotify).await {
                    tracing::error!(%error, "the configuration's file is no longer watched");
                    return;
                }
                while let Ok(result) = time::timeout(SETTLED, drain(&inotify)).await {
                    if result.is_err() {
                        break;
                    }
                }
                let text = match fs::read(&file) {
                    Ok(text) => text,
                    // It is about to be replaced.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => {
                        tracing::error!(%error, file = %file.display(), "reading what has changed");
                        continue;
                    }
                };
                if known != text {
                    known = text;
                    if events.send(Event::Reload).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Self(task.abort_handle()))
    }
}

impl Drop for FileWatch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits until something has happened, and takes note of all that has.
async fn drain(inotify: &AsyncFd<File>) -> io::Result<()> {
    let mut ready = inotify.readable().await?;
    // Long enough for some events; what they say is of no interest.
    let mut buffer = [0; 4096];
    loop {
        match ready.try_io(|inotify| inotify.get_ref().read(&mut buffer)) {
            Ok(read) => read.map(drop)?,
            // There is no more.
            Err(_) => return Ok(()),
        }
    }
}
