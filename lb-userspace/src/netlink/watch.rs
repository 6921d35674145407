//! Watching the network, so that next hops are kept fresh.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, StreamExt as _};
use tokio::{sync::watch::Receiver, time};

use super::{
    NetlinkError, Network,
    read::{Change, Reader, changes},
};

/// Changes come in bursts: one look at the network this long after the first of them, at the earliest.
const SETTLE: Duration = Duration::from_millis(50);
/// Before a look at changes there is a pause of so many times as long as the last one took.
const SETTLE_FACTOR: u32 = 4;
/// A look without any news, should news have been lost, at the earliest.
const REFRESH: Duration = Duration::from_secs(5);
/// As for changes.
const REFRESH_FACTOR: u32 = 50;
/// The same while an address isn't resolved.
const RETRY: Duration = Duration::from_millis(500);

/// What is looked at, and how often somebody has asked for the picture whether it's new or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Whose next hops are wanted.
    pub addresses: Vec<IpAddr>,
    /// Counts who asked.
    pub asked: u64,
}

/// Calls `changed` with the network whenever it isn't what it was, or somebody asks, until that returns false or
/// the sender of `wish` is gone. However much there is to look at, it takes a fifth of a CPU at most.
///
/// # Errors
///
/// No connection to the kernel.
pub async fn watch(
    mut wish: Receiver<Wish>,
    mut changed: impl FnMut(Network) -> bool,
) -> Result<(), NetlinkError> {
    let mut reader = Reader::connect()?;
    let mut changes = changes()?;
    let mut last: Option<Network> = None;
    let mut change = Change::Other;
    let mut answered = 0;
    loop {
        let start = Instant::now();
        let looked = match (&last, change) {
            (Some(last), Change::Neighbour) => {
                reader.next_hops().await.map(|next_hops| Network { next_hops, ..last.clone() })
            }
            _ => {
                let Wish { addresses, asked } = wish.borrow_and_update().clone();
                if answered != asked {
                    answered = asked;
                    last = None;
                }
                reader.read(addresses).await
            }
        };
        let took = start.elapsed();
        match looked {
            Ok(network) if last.as_ref() != Some(&network) => {
                last = Some(network.clone());
                if !changed(network) {
                    return Ok(());
                }
            }
            Ok(_) => {}
            Err(error) => {
                // It is read as a whole then.
                last = None;
                tracing::warn!(%error, "reading the network; trying again");
            }
        }
        let complete =
            last.as_ref().is_some_and(|network| network.next_hops.values().all(Result::is_ok));
        let refresh = if complete { REFRESH } else { RETRY }.max(took * REFRESH_FACTOR);
        change = tokio::select! {
            // Addresses that are asked for aren't left waiting for what changes all the time.
            biased;
            changed = wish.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                Change::Other
            }
            change = changes.next() => {
                let gone = || NetlinkError::Connect(std::io::ErrorKind::BrokenPipe.into());
                let mut most = change.ok_or_else(gone)?;
                time::sleep(SETTLE.max(took * SETTLE_FACTOR)).await;
                // What came meanwhile is covered by the look that follows.
                while let Some(change) = changes.next().now_or_never().flatten() {
                    most = most.max(change);
                }
                if most == Change::Lost {
                    tracing::warn!(
                        "the kernel told of more changes to the network than there was room for: \
                         all of it is looked at"
                    );
                }
                most
            }
            () = time::sleep(refresh) => Change::Other,
        };
    }
}
