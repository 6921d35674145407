//! A small web server that says who it is.

use std::{convert::Infallible, net::SocketAddr};

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Serves `/client/` until the process ends: status 200 and the name.
///
/// # Errors
///
/// The address can't be listened on.
pub fn serve(address: SocketAddr, name: &str) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(address).await.with_context(|| address.to_string())?;
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let name = name.to_owned();
            let service = service_fn(move |request| {
                let response = answer(&request, &name);
                async move { Ok::<_, Infallible>(response) }
            });
            tokio::spawn(async move {
                // A client that hangs up is none of our business.
                let _: hyper::Result<()> =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    })
}

fn answer(request: &Request<Incoming>, name: &str) -> Response<Full<Bytes>> {
    let found = request.uri().path() == "/client/";
    let text = if found { format!("{name}\n") } else { "not found\n".to_owned() };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = if found { StatusCode::OK } else { StatusCode::NOT_FOUND };
    response
        .headers_mut()
        .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain"));
    response
}
