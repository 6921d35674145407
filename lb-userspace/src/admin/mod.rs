//! The admin pages: what there is, for people, scripts and Prometheus. They change nothing.

mod guests;
mod metrics;
mod page;

use std::{net::SocketAddr, time::Duration};

use axum::{
    Router,
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
    sync::{mpsc, oneshot},
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
        .with_state(Source { pins, calls, live });
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

    /// Everything there is.
    async fn status(&self) -> Result<(Status, Maps), Response> {
        let controller = self.controller().await;
        let pins = self.pins.clone();
        let read = task::spawn_blocking(move || {
            let maps = Maps::open(&pins)?;
            Ok((Status::read(&maps, controller)?, maps))
        });
        match read.await {
            Ok(result) => result.map_err(|error: crate::dataplane::DataplaneError| {
                (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
            }),
            Err(_) => Err(StatusCode::INTERNAL_SERVER_ERROR.into_response()),
        }
    }
}

async fn stats(State(source): State<Source>) -> Result<Response, Response> {
    let (status, _) = source.status().await?;
    Ok(([(CONTENT_TYPE, "text/html; charset=utf-8")], page::render(&status)).into_response())
}

async fn stats_json(State(source): State<Source>) -> Result<Response, Response> {
    let (status, _) = source.status().await?;
    let text = serde_json::to_string(&status)
        .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())?;
    Ok(([(CONTENT_TYPE, "application/json")], text).into_response())
}

async fn metrics(State(source): State<Source>, headers: HeaderMap) -> Result<Response, Response> {
    let (status, maps) = source.status().await?;
    let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_open = accepted.contains("application/openmetrics-text");
    let render = move || metrics::render(&status, &maps, &source.live);
    let text = task::spawn_blocking(render)
        .await
        .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())?
        .map_err(|error| {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response()
        })?;
    Ok(if is_open {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        ([(CONTENT_TYPE, kind)], text).into_response()
    } else {
        let kind = "text/plain; version=0.0.4; charset=utf-8";
        ([(CONTENT_TYPE, kind)], metrics::in_text_format(&text)).into_response()
    })
}

async fn healthz(State(source): State<Source>) -> (StatusCode, &'static str) {
    match source.controller().await {
        Some(_) => (StatusCode::OK, "ok\n"),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the controller's loop doesn't answer\n"),
    }
}

async fn readyz(State(source): State<Source>) -> Result<(StatusCode, &'static str), Response> {
    let (status, _) = source.status().await?;
    Ok(if status.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "a service has no backend, or no program is attached\n")
    })
}
