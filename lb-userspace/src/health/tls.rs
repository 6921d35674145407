//! TLS under a check.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{self, CertificateError, pki_types::ServerName},
};

use super::{Cause, Failure};
use crate::config::Tls;

/// Shakes hands, for the host that is named, or else for the address.
pub(super) async fn connect(
    tls: &Tls,
    host: Option<&str>,
    target: SocketAddr,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, Failure> {
    let local = |error: String| Failure::new(Cause::Local, error);
    let name = match host.map(without_port) {
        Some(host) => ServerName::try_from(host.to_owned())
            .map_err(|error| local(format!("host \"{host}\": {error}")))?,
        None => ServerName::from(target.ip()),
    };
    let connector = TlsConnector::from(Arc::clone(&tls.config));
    connector.connect(name, stream).await.map_err(|error| words(&error))
}

/// A Host header may name a port.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            name.trim_start_matches('[').trim_end_matches(']')
        }
        _ => host,
    }
}

fn words(error: &io::Error) -> Failure {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(inner) = inner else {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Failure::new(Cause::Tls, "closed in the TLS handshake");
        }
        return super::words(error);
    };
    let detail = match inner {
        rustls::Error::InvalidCertificate(invalid) => match invalid {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the certificate has expired".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the certificate isn't valid yet".to_owned()
            }
            CertificateError::UnknownIssuer => {
                "the certificate is by nobody who is trusted (ca_file names others)".to_owned()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the certificate is for another name (host sets which is asked for)".to_owned()
            }
            other => format!("the certificate isn't accepted: {other}"),
        },
        rustls::Error::InvalidMessage(_) => "what answers doesn't speak TLS".to_owned(),
        rustls::Error::AlertReceived(alert) => format!("the backend refuses TLS: {alert:?}"),
        other => format!("TLS: {other}"),
    };
    Failure::new(Cause::Tls, detail)
}
