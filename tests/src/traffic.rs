//! Traffic that nothing may disturb.

use std::{
    net::TcpStream,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use xtask::netns::Namespace;

use crate::{
    bed::{Bed, SERVICE},
    client::{self, Connection, at_pace, exchange},
};

/// What came of the traffic.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Connections with one request each.
    pub opened: AtomicU32,
    /// Requests over connections that were there before.
    pub requests: AtomicU32,
    /// Of both, those without an answer.
    pub failed: AtomicU32,
    /// Requests that another backend answered than the connection's.
    pub moved: AtomicU32,
}

/// Does something while there is traffic, and demands that nothing of that fails.
///
/// # Errors
///
/// Something does.
pub fn under_traffic(
    bed: &mut Bed,
    work: impl FnOnce(&mut Bed) -> Result<()>,
) -> Result<Arc<Traffic>> {
    let traffic = Arc::new(Traffic::default());
    let over = Arc::new(AtomicBool::new(false));
    let mut held = client::held(bed, 30)?;
    let client = Namespace::existing(bed.client.name());
    let to: std::net::SocketAddr = SERVICE.parse()?;

    let (shared, ended) = (Arc::clone(&traffic), Arc::clone(&over));
    let open = move |_| {
        if ended.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        let result = TcpStream::connect(to).map_err(Into::into).and_then(exchange);
        shared.opened.fetch_add(1, Ordering::Relaxed);
        shared.failed.fetch_add(result.is_err().into(), Ordering::Relaxed);
        ControlFlow::Continue(())
    };
    let keep = |held: &mut Vec<(String, Connection)>| {
        while !over.load(Ordering::Relaxed) {
            for (name, connection) in held.iter_mut() {
                let answer = connection.request();
                traffic.requests.fetch_add(1, Ordering::Relaxed);
                traffic.failed.fetch_add(answer.is_err().into(), Ordering::Relaxed);
                let moved = answer.is_ok_and(|answer| answer != *name);
                traffic.moved.fetch_add(moved.into(), Ordering::Relaxed);
            }
            thread::sleep(Duration::from_millis(2));
        }
    };
    thread::scope(|scope| {
        let opening = scope.spawn(|| at_pace(&client, 4, Duration::from_millis(4), open));
        let keeping = scope.spawn(|| keep(&mut held));
        let result = work(bed);
        over.store(true, Ordering::Relaxed);
        opening.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        keeping.join().map_err(|_| anyhow::anyhow!("panicked"))?;
        result
    })?;
    println!("{traffic:?}");
    let count = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
    ensure!(count(&traffic.failed) == 0 && count(&traffic.moved) == 0, "{traffic:?}");
    ensure!(count(&traffic.opened) > 50 && count(&traffic.requests) > 100, "{traffic:?}");
    Ok(traffic)
}
