//! What comes from outside, and becomes events of the controller's loop.

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

use super::{controller::Event, path_mtu, start::StartError};
use crate::netlink::{self, Wish};

/// Tells what the network looks like whenever that changes, or somebody wishes to know.
pub(super) fn watch_network(wish: watch::Receiver<Wish>, events: mpsc::Sender<Event>) {
    tokio::spawn(async move {
        // Only the newest is of interest to a loop that is busy.
        let (sender, mut receiver) = watch::channel(None);
        tokio::spawn(async move {
            while receiver.changed().await.is_ok() {
                let Some(network) = receiver.borrow_and_update().clone() else { continue };
                if events.send(Event::Network(network)).await.is_err() {
                    return;
                }
            }
        });
        let changed = |network| sender.send(Some(network)).is_ok();
        if let Err(error) = netlink::watch(wish, changed).await {
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
