//! The admin pages: what there is, for people, scripts and Prometheus. They change nothing.

mod guests;
mod metrics;
mod page;

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use anyhow::bail;
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc, oneshot},
    task, time,
};

pub use metrics::Live;

use self::guests::Door;
use crate::{
    api::{self, Call, ControllerStatus, Request},
    dataplane::{Maps, Pins},
    observe::Status,
};

/// How long the controller's loop may take to answer before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the pages are made of.
#[derive(Clone)]
struct Source {
    pins: Pins,
    calls: mpsc::Sender<Call>,
    live: Live,
    /// The maps, once they are open: they stay so, whatever becomes of the pins.
    maps: Arc<OnceLock<Maps>>,
    /// Each page as it was last.
    last: Arc<[Mutex<Option<Last>>; Page::ALL.len()]>,
}

/// A page that reads the maps.
#[derive(Clone, Copy, Debug)]
enum Page {
    Stats,
    StatsJson,
    Metrics,
    Ready,
}

impl Page {
    const ALL: [Self; 4] = [Self::Stats, Self::StatsJson, Self::Metrics, Self::Ready];
}

/// A page as it was at a moment.
#[derive(Clone)]
struct Last {
    began: Instant,
    ended: Instant,
    page: Result<Bytes, Bytes>,
}

/// Listens, within a tokio runtime, and serves until the process ends.
///
/// # Errors
///
/// The address can't be listened on.
pub async fn serve(
    address: SocketAddr,
    pins: Pins,
    calls: mpsc::Sender<Call>,
    live: Live,
) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let pages = Router::new()
        .route("/stats", get(stats))
        .route("/stats.json", get(stats_json))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(Source { pins, calls, live, maps: Arc::default(), last: Arc::default() });
    tokio::spawn(async move {
        if let Err(error) = axum::serve(Door::new(listener), pages).await {
            tracing::error!(%error, "the admin pages are no longer served");
        }
    });
    Ok(())
}

impl Source {
    /// What the controller's loop says of itself; nothing if it doesn't answer.
    async fn controller(&self) -> Option<ControllerStatus> {
        let (sender, receiver) = oneshot::channel();
        let answer = async {
            self.calls.send((Request::Status, sender)).await.ok()?;
            receiver.await.ok()
        };
        match time::timeout(PATIENCE, answer).await {
            Ok(Some(api::Response::Status(status))) => Some(status),
            _ => None,
        }
    }

    /// A page, or why there is none. Whoever asks while it is made waits for it, and they share the next one: however many
    /// ask, one thread reads the maps for it, half of the time at most.
    async fn page(&self, page: Page) -> Result<Bytes, Bytes> {
        let asked = Instant::now();
        let mut last = self.last[page as usize].lock().await;
        if let Some(Last { began, ended, page }) = &*last {
            if *began >= asked {
                return page.clone();
            }
            time::sleep_until((*ended + (*ended - *began)).into()).await;
        }
        let began = Instant::now();
        let controller = self.controller().await;
        let source = self.clone();
        let made = task::spawn_blocking(move || make(page, controller, &source));
        let page = match made.await {
            Ok(Ok(text)) => Ok(text.into()),
            Ok(Err(error)) => Err(format!("{error}\n").into()),
            Err(error) => Err(format!("{error}\n").into()),
        };
        *last = Some(Last { began, ended: Instant::now(), page: page.clone() });
        page
    }
}

fn make(
    page: Page,
    controller: Option<ControllerStatus>,
    source: &Source,
) -> anyhow::Result<String> {
    let maps = match source.maps.get() {
        Some(maps) => maps,
        None => {
            let opened = Maps::open(&source.pins)?;
            source.maps.get_or_init(|| opened)
        }
    };
    let status = Status::read(maps, controller)?;
    Ok(match page {
        Page::Stats => page::render(&status),
        Page::StatsJson => serde_json::to_string(&status)?,
        Page::Metrics => metrics::render(&status, maps, &source.live)?,
        Page::Ready => match status.lacks() {
            None => "ready\n".to_owned(),
            Some(why) => bail!("{why}"),
        },
    })
}

fn answer(page: Result<Bytes, Bytes>, kind: &'static str) -> Response {
    match page {
        Ok(text) => ([(CONTENT_TYPE, kind)], text).into_response(),
        Err(why) => (StatusCode::INTERNAL_SERVER_ERROR, why).into_response(),
    }
}

async fn stats(State(source): State<Source>) -> Response {
    answer(source.page(Page::Stats).await, "text/html; charset=utf-8")
}

async fn stats_json(State(source): State<Source>) -> Response {
    answer(source.page(Page::StatsJson).await, "application/json")
}

async fn metrics(State(source): State<Source>, headers: HeaderMap) -> Response {
    let page = source.page(Page::Metrics).await;
    let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accepted.contains("application/openmetrics-text") {
        return answer(page, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    }
    let page = page.map(|text| metrics::in_text_format(&String::from_utf8_lossy(&text)).into());
    answer(page, "text/plain; version=0.0.4; charset=utf-8")
}

async fn healthz(State(source): State<Source>) -> (StatusCode, &'static str) {
    match source.controller().await {
        Some(_) => (StatusCode::OK, "ok\n"),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the controller's loop doesn't answer\n"),
    }
}

async fn readyz(State(source): State<Source>) -> (StatusCode, Bytes) {
    match source.page(Page::Ready).await {
        Ok(text) => (StatusCode::OK, text),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
    }
}
