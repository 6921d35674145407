//! Watching the network, so that next hops are kept fresh.

use std::{net::IpAddr, time::Duration};

use futures_util::StreamExt;
use tokio::{sync::watch::Receiver, time};

use super::{NetlinkError, Network, read::Reader};

/// Changes come in bursts: one look at the network this long after the first of them.
const SETTLE: Duration = Duration::from_millis(50);
/// A look without any news, should news have been lost.
const REFRESH: Duration = Duration::from_secs(5);
/// The same while an address isn't resolved.
const RETRY: Duration = Duration::from_millis(500);

/// Calls `changed` with the network whenever it isn't what it was, until that returns false or
/// the sender of `addresses` is gone.
///
/// # Errors
///
/// No connection to the kernel.
pub async fn watch(
    mut addresses: Receiver<Vec<IpAddr>>,
    mut changed: impl FnMut(Network) -> bool,
) -> Result<(), NetlinkError> {
    let (reader, mut changes) = Reader::connect_with_changes()?;
    let mut last: Option<Network> = None;
    loop {
        let wanted = addresses.borrow_and_update().clone();
        match reader.read(wanted).await {
            Ok(network) if last.as_ref() != Some(&network) => {
                last = Some(network.clone());
                if !changed(network) {
                    return Ok(());
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "reading the network; trying again"),
        }
        let complete =
            last.as_ref().is_some_and(|network| network.next_hops.values().all(Result::is_ok));
        tokio::select! {
            change = changes.next() => {
                if change.is_none() {
                    return Err(NetlinkError::Connect(std::io::ErrorKind::BrokenPipe.into()));
                }
                time::sleep(SETTLE).await;
                // What came meanwhile is covered by the look that follows.
                while futures_util::FutureExt::now_or_never(changes.next()).flatten().is_some() {}
            }
            wanted = addresses.changed() => {
                if wanted.is_err() {
                    return Ok(());
                }
            }
            () = time::sleep(if complete { REFRESH } else { RETRY }) => {}
        }
    }
}
