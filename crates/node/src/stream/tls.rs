//! TLS between nodes: version 1.3, with HTTP/2 on it, or HTTP/1.1 for applications.
//!
//! Files are read again when they have changed, so that a certificate is renewed by putting other files in place.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::config::cluster::TlsFiles;
use crate::config::io_text;

/// What is spoken on the connection, as ALPN says it (RFC 9113, section 3.2).
const HTTP2: &[u8] = b"h2";
/// The same for applications that ask a node something.
const HTTP1: &[u8] = b"http/1.1";
/// What is spoken where the primary dials its replica (docs/spec/stream.md, "Pushing").
const PUSH: &[u8] = b"rhyolite-push";

/// By what a follower knows a node, and proves who it is itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// Certificates (PEM) of those who may vouch for a node; the system's when there is none.
    pub ca: Option<PathBuf>,
    /// Our certificate with what leads to its root, and its private key (PEM), for a node that asks for them.
    pub identity: Option<(PathBuf, PathBuf)>,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = std::fs::read(path).map_err(|e| format!("read {}: {}", path.display(), io_text(&e)))?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let read = read.map_err(|e| format!("{} is no PEM file: {e}", path.display()))?;
    if read.is_empty() { Err(format!("{} has no certificate (PEM)", path.display())) } else { Ok(read) }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let bytes = std::fs::read(path).map_err(|e| format!("read {}: {}", path.display(), io_text(&e)))?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|e| format!("{} has no private key (PEM): {e}", path.display()))
}

fn roots(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(roots)
}

/// Those whom the system trusts.
fn system_roots() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    match found.errors.first() {
        Some(error) if roots.is_empty() => Err(format!("read the certificates of the system: {error}")),
        None if roots.is_empty() => Err("the system has no certificates: name some by --ca".to_owned()),
        _ => Ok(roots),
    }
}

fn server_config(files: &TlsFiles, protocols: &[&[u8]]) -> Result<Arc<ServerConfig>, String> {
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]);
    let builder = builder.map_err(|e| e.to_string())?;
    let builder = match &files.client_ca {
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(path)?), provider());
            builder.with_client_cert_verifier(verifier.build().map_err(|e| format!("{}: {e}", path.display()))?)
        }
        None => builder.with_no_client_auth(),
    };
    let config = builder.with_single_cert(certificates(&files.cert)?, key(&files.key)?);
    let mut config = config.map_err(|e| format!("{} and {}: {e}", files.cert.display(), files.key.display()))?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

/// What a follower needs to connect.
///
/// # Errors
/// One line: a file is missing, or holds something else.
pub fn client_config(files: &ClientFiles) -> Result<Arc<ClientConfig>, String> {
    client_config_for(files, HTTP2)
}

fn client_config_for(files: &ClientFiles, protocol: &[u8]) -> Result<Arc<ClientConfig>, String> {
    let roots = files.ca.as_deref().map_or_else(system_roots, roots)?;
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]);
    let builder = builder.map_err(|e| e.to_string())?.with_root_certificates(roots);
    let mut config = match &files.identity {
        Some((cert, own)) => {
            let config = builder.with_client_auth_cert(certificates(cert)?, key(own)?);
            config.map_err(|e| format!("{} and {}: {e}", cert.display(), own.display()))?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(Arc::new(config))
}

/// Makes a connection to `host` a secret one, when it proves to be that host.
pub(super) async fn connect(
    files: &ClientFiles,
    host: &str,
    stream: TcpStream,
) -> Result<client::TlsStream<TcpStream>, String> {
    connect_for(files, host, stream, HTTP2).await
}

/// The same for a primary that dials a replica.
pub(super) async fn connect_to_push(
    files: &ClientFiles,
    host: &str,
    stream: TcpStream,
) -> Result<client::TlsStream<TcpStream>, String> {
    let connected = connect_for(files, host, stream, PUSH).await;
    connected.map_err(|text| match text.contains("NoApplicationProtocol") {
        true => format!("{text}: it is no replica that was told to --accept"),
        false => text,
    })
}

async fn connect_for(
    files: &ClientFiles,
    host: &str,
    stream: TcpStream,
    protocol: &'static [u8],
) -> Result<client::TlsStream<TcpStream>, String> {
    let name = ServerName::try_from(host.to_owned()).map_err(|e| format!("{host}: {e}"))?;
    let files = files.clone();
    let config = tokio::task::spawn_blocking(move || client_config_for(&files, protocol)).await;
    let config = config.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))?;
    TlsConnector::from(config).connect(name, stream).await.map_err(|e| e.to_string())
}

/// A node's side.
#[derive(Debug)]
pub struct Acceptor {
    files: TlsFiles,
    protocols: &'static [&'static [u8]],
    loaded: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    /// When the files were written.
    written: Vec<Option<SystemTime>>,
    config: Arc<ServerConfig>,
}

fn written(files: &TlsFiles) -> Vec<Option<SystemTime>> {
    let all = [Some(&files.cert), Some(&files.key), files.client_ca.as_ref()];
    let time = |path: &PathBuf| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    all.into_iter().flatten().map(time).collect()
}

impl Acceptor {
    /// # Errors
    /// One line: a file is missing, holds something else, or the key is not that of the certificate.
    pub fn new(files: TlsFiles) -> Result<Self, String> {
        Self::of(files, &[HTTP2, HTTP1])
    }

    /// One at which primaries dial.
    ///
    /// # Errors
    /// As for [`Acceptor::new`].
    pub fn for_pushes(files: TlsFiles) -> Result<Self, String> {
        Self::of(files, &[PUSH])
    }

    fn of(files: TlsFiles, protocols: &'static [&'static [u8]]) -> Result<Self, String> {
        let loaded = Loaded { written: written(&files), config: server_config(&files, protocols)? };
        Ok(Self { files, protocols, loaded: Mutex::new(loaded) })
    }

    /// What the files say. While they make no sense, what they said before counts.
    fn config(&self) -> Arc<ServerConfig> {
        let written = written(&self.files);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.written != written {
            loaded.written = written;
            match server_config(&self.files, self.protocols) {
                Ok(config) => loaded.config = config,
                Err(error) => tracing::error!("the certificate of before is kept: {error}"),
            }
        }
        Arc::clone(&loaded.config)
    }

    /// Makes a connection a secret one, when the other end proves what it is asked for.
    pub(super) async fn accept(&self, stream: TcpStream) -> Result<server::TlsStream<TcpStream>, String> {
        TlsAcceptor::from(self.config()).accept(stream).await.map_err(|e| e.to_string())
    }
}
