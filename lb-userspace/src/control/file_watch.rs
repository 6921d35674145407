//! Watching the configuration's file.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::Path,
    time::Duration,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{io::unix::AsyncFd, sync::mpsc, task::AbortHandle, time};

use super::{controller::Event, troubles::Troubles};
use crate::config;

/// Watches a file until it is dropped, and asks for a reload when its text has changed.
pub(super) struct FileWatch(AbortHandle);

/// How long a file must have been left alone: an editor may write it in parts.
const SETTLED: Duration = Duration::from_millis(200);
/// But one that is written all the time is read after so long.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time between two looks without any news: not every way that a path can come to mean another file is told.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

impl FileWatch {
    /// Starts, within a tokio runtime. Directories are watched, since editors replace files, and so do those who mount
    /// configurations into containers: the file's own, and that of the file which it is a link to.
    ///
    /// `text` is what was read of it last.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub(super) fn start(file: &Path, text: &str, events: mpsc::Sender<Event>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        watch_around(&inotify, file)?;
        // SAFETY: it stays in there, and open, for as long as it is registered.
        let inotify = unsafe { AsyncFd::register(Directories(inotify)) }?;
        let file = file.to_path_buf();
        let mut known = text.to_owned();
        let task = tokio::spawn(async move {
            let mut troubles = Troubles::default();
            loop {
                // At first, what changed before anything was watched.
                let read = match config::text_of(&file) {
                    Ok(text) if text != known => {
                        known = text;
                        if events.send(Event::Reload).await.is_err() {
                            return;
                        }
                        Ok(())
                    }
                    // It may be about to be replaced.
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        let file = file.display();
                        Err(format!("the configuration's file can't be read: {file}: {error}"))
                    }
                    _ => Ok(()),
                };
                troubles.note("file", read);
                if time::timeout(LOOK_AGAIN, changed(&inotify)).await.is_ok() {
                    let settled =
                        async { while time::timeout(SETTLED, changed(&inotify)).await.is_ok() {} };
                    // Whichever comes first.
                    let _: Result<(), time::error::Elapsed> =
                        time::timeout(PATIENCE, settled).await;
                }
                // A directory may be another one by now. One that can't be watched is looked at from time to time.
                let _: io::Result<()> = watch_around(&inotify.get_ref().0, &file);
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

/// What tells of changes in directories.
struct Directories(Inotify);

impl AsRawFd for Directories {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Watches the directory of a file, and that of the file which it is a link to. One that is watched already stays so.
fn watch_around(inotify: &Inotify, file: &Path) -> io::Result<()> {
    let changes = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_ATTRIB;
    let directory = match file.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    inotify.add_watch(directory, changes)?;
    if let Ok(target) = fs::canonicalize(file)
        && let Some(directory) = target.parent()
    {
        inotify.add_watch(directory, changes)?;
    }
    Ok(())
}

/// Waits until something has happened, and takes note of all that has.
async fn changed(inotify: &AsyncFd<Directories>) {
    loop {
        // The runtime ends.
        let Ok(mut ready) = inotify.readable().await else { return };
        let mut is_news = false;
        // What the events say is of no interest.
        while ready.try_io(|inotify| Ok(inotify.get_ref().0.read_events()?)).is_ok_and(|read| {
            is_news |= read.is_ok();
            read.is_ok()
        }) {}
        if is_news {
            return;
        }
    }
}
