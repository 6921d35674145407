//! What checks by TLS trust, and what they show of themselves.

use std::{
    fmt, fs,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};

use super::{file, validate::Validator};

/// How checks speak TLS.
#[derive(Clone)]
pub struct Tls {
    /// Whether a backend's certificate must be right.
    pub verify: bool,
    /// Who it must be signed by; `None`: one of the system's authorities.
    pub ca_file: Option<PathBuf>,
    /// What is shown to a backend that wants to know who asks.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub certificate_key: Option<PathBuf>,
    /// All of that, read.
    pub config: Arc<ClientConfig>,
    /// The contents of the files.
    contents: Vec<Vec<u8>>,
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        let files = |tls: &Self| {
            (tls.verify, tls.ca_file.clone(), tls.certificate.clone(), tls.certificate_key.clone())
        };
        files(self) == files(other) && self.contents == other.contents
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Tls")
            .field("verify", &self.verify)
            .field("ca_file", &self.ca_file)
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

impl Validator {
    /// Reads the files that a check by TLS needs.
    pub(super) fn tls(&mut self, check: &file::Check) -> Option<Tls> {
        let verify = check.verify.as_ref().is_none_or(|verify| *verify.get_ref());
        let path = |written: &Option<file::Text>| {
            written.as_ref().map(|path| PathBuf::from(path.get_ref()))
        };
        let (ca_file, certificate) = (path(&check.ca_file), path(&check.certificate));
        // Often the key is in the same file.
        let certificate_key = path(&check.certificate_key).or_else(|| certificate.clone());
        if let (Some(key), None) = (&check.certificate_key, &check.certificate) {
            self.problem(key.span(), "a key without a certificate", "write certificate as well");
        }
        let mut contents = Vec::new();
        let mut read = |validator: &mut Self, written: Option<&file::Text>| {
            let written = written?;
            match fs::read(written.get_ref()) {
                Ok(content) => {
                    contents.push(content.clone());
                    Some(content)
                }
                Err(error) => {
                    let hint =
                        "write the path of a file in PEM format that the controller may read";
                    let path = written.get_ref();
                    validator.problem(written.span(), format!("{path}: {error}"), hint);
                    None
                }
            }
        };
        let authorities = read(self, check.ca_file.as_ref());
        let chain = read(self, check.certificate.as_ref());
        let key_written = check.certificate_key.as_ref().or(check.certificate.as_ref());
        let key = read(self, key_written);
        let written = [&check.ca_file, &check.certificate, &check.certificate_key];
        let span = check.kind.as_ref().map_or(0..0, toml::Spanned::span);
        if written.into_iter().flatten().count() > 0 && contents.is_empty() {
            return None;
        }
        match client(verify, authorities.as_deref(), chain.as_deref().zip(key.as_deref())) {
            Ok(config) => Some(Tls {
                verify,
                ca_file,
                certificate,
                certificate_key,
                config: Arc::new(config),
                contents,
            }),
            Err(error) => {
                self.problem(span, error, "write ca_file and certificate in PEM format");
                None
            }
        }
    }
}

/// Makes a client of certificates and keys in PEM format.
fn client(
    verify: bool,
    authorities: Option<&[u8]>,
    identity: Option<(&[u8], &[u8])>,
) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = if verify {
        builder.with_root_certificates(match authorities {
            Some(pem) => Arc::new(roots(certificates(pem, "ca_file")?)?),
            None => system_roots()?,
        })
    } else {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Trusting(provider)))
    };
    let Some((chain, key)) = identity else { return Ok(builder.with_no_client_auth()) };
    let key =
        PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("certificate_key: {error}"))?;
    let chain = certificates(chain, "certificate")?;
    builder.with_client_auth_cert(chain, key).map_err(|error| format!("certificate: {error}"))
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| format!("{what}: {error}"))?;
    if found.is_empty() { Err(format!("{what}: no certificate in it")) } else { Ok(found) }
}

fn roots(certificates: Vec<CertificateDer<'static>>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|error| format!("ca_file: {error}"))?;
    }
    Ok(roots)
}

/// The system's authorities, read once.
fn system_roots() -> Result<Arc<RootCertStore>, String> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    });
    if roots.is_empty() {
        return Err("this system has no list of authorities (package ca-certificates)".to_owned());
    }
    Ok(Arc::clone(roots))
}

/// Takes any certificate, as long as its owner is at the other end.
#[derive(Debug)]
struct Trusting(Arc<CryptoProvider>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, tokio_rustls::rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, tokio_rustls::rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, tokio_rustls::rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
