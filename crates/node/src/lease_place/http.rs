//! Requests to a service with a lease, and what their answers mean.
//!
//! A call has one time limit for everything that it does. Nothing is sent twice: a write whose answer was lost is looked for by whoever asked.
//! No proxy is in between, whatever the environment says: it could answer from a cache, or send again.

use std::net::IpAddr;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Client, Identity, Method, Url, redirect, retry};
use rhyolite_format::Nonce;
use rhyolite_store::{Operation, StoreError, StoreErrorKind as Kind, Version};
use serde_json::Value;

use super::LeaseUrl;

/// What may follow a `?`, where there is TLS.
pub(super) const OPTIONS: [&str; 4] = ["ca-file", "cert-file", "key-file", "skip-verify"];
/// Largest answer: a record is at most 64 KiB, and a service may put it into base64 and JSON.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Before a server closes it, for a request that meets a closing connection cannot be told from one that was applied.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// So much of a server's own words is repeated.
const WORDS_MAX: usize = 200;

/// A service, and how it is spoken with.
pub(super) struct Service {
    client: Client,
    /// `https://host:port`
    base: String,
    /// For messages.
    pub(super) place: String,
    /// Longest time for a call.
    limit: Duration,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("place", &self.place).finish_non_exhaustive()
    }
}

/// Certificates and keys, as PEM.
#[derive(Default)]
pub(super) struct Tls {
    /// Trusted instead of those of the system.
    pub(super) ca: Option<Vec<u8>>,
    /// What we show: certificates, then the key.
    pub(super) identity: Option<Vec<u8>>,
    /// Any server is trusted.
    pub(super) skip_verify: bool,
}

/// An answer with a status and a body that is JSON; `Null` where it is something else.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Value,
    pub(super) text: String,
}

impl Service {
    /// The service at `base`, of which messages speak as `lease` is written.
    pub(super) fn new(lease: &LeaseUrl, base: String, tls: Tls, limit: Duration) -> Result<Self, StoreError> {
        let mut builder = Client::builder()
            .connect_timeout(limit)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .no_proxy()
            .tls_danger_accept_invalid_certs(tls.skip_verify);
        if let Some(pem) = &tls.ca {
            let certificates = Certificate::from_pem_bundle(pem);
            let certificates = certificates.map_err(|e| lease.invalid(format!("the CA file: {e}")))?;
            if certificates.is_empty() {
                return Err(lease.invalid("the CA file has no certificate"));
            }
            builder = builder.tls_certs_only(certificates);
        }
        if let Some(pem) = &tls.identity {
            let identity = Identity::from_pem(pem);
            builder = builder.identity(identity.map_err(|e| lease.invalid(format!("the certificate and key: {e}")))?);
        }
        let client = builder.build().map_err(|e| lease.invalid(format!("prepare the HTTP client: {e}")))?;
        Ok(Self { client, base, place: lease.to_string(), limit })
    }

    /// The service at the URL's own host, over TLS if its scheme says so.
    pub(super) fn at(lease: &LeaseUrl, port: u16, limit: Duration) -> Result<Self, StoreError> {
        let scheme = if lease.is_tls() { "https" } else { "http" };
        let base = format!("{scheme}://{}:{}", lease.host(), lease.url.port().unwrap_or(port));
        Self::new(lease, base, tls_of(lease)?, limit)
    }

    /// Says it when what is sent can be read on its way, and `secret` is a part of it. For once, when the place is opened.
    pub(super) fn warn_of_readers(&self, secret: &str) {
        if is_readable(&self.base) {
            tracing::warn!("{}: {secret} goes over plain HTTP, where others can read it: use HTTPS", self.place);
        }
    }

    /// Runs a call, within the limit.
    pub(super) async fn within<T>(
        &self,
        operation: Operation,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(self.limit, call).await {
            Ok(done) => done,
            Err(_) => {
                let text = format!("no answer within {} ms", self.limit.as_millis());
                Err(self.error(unclear(operation), operation, text))
            }
        }
    }

    /// Sends a request and reads the answer. A write is one with [`Operation::Swap`].
    pub(super) async fn send(
        &self,
        operation: Operation,
        method: Method,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        body: Option<Value>,
    ) -> Result<Answer, StoreError> {
        let mut builder = self.client.request(method, format!("{}{path}", self.base));
        for (name, value) in headers {
            builder = builder.header(name, value);
        }
        if let Some(body) = body {
            builder = builder.header("content-type", "application/json").body(body.to_string());
        }
        let failed = |e: reqwest::Error| {
            // Without a connection nothing was sent.
            let kind = if e.is_connect() || e.is_builder() { Kind::Unavailable } else { unclear(operation) };
            self.error(kind, operation, in_words(&e))
        };
        let mut response = builder.send().await.map_err(failed)?;
        let (status, headers) = (response.status().as_u16(), std::mem::take(response.headers_mut()));
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > ANSWER_BYTES_MAX {
                return Err(self.error(unclear(operation), operation, "the answer is larger than any record"));
            }
        }
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Ok(Answer { status, headers, body, text: String::from_utf8_lossy(&bytes).into_owned() })
    }

    /// What a status means that the caller has no meaning of its own for.
    pub(super) fn refusal(&self, operation: Operation, answer: &Answer) -> StoreError {
        let status = answer.status;
        let (kind, reason) = match status {
            401 | 403 => (Kind::Denied, "the service refuses the credentials or the access"),
            300..=399 => (Kind::Invalid, "the service answers with a redirect: is the URL right?"),
            404 | 405 => (Kind::Invalid, "the service does not know the request: is the URL right?"),
            408 | 425 | 429 => (Kind::Unavailable, "the service has too much to do"),
            400..=499 => (Kind::Invalid, "the service refuses the request"),
            500.. => (unclear(operation), "the service failed"),
            _ => (unclear(operation), "the service gives an answer that makes no sense"),
        };
        let words: String = answer.text.trim().chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect();
        let words = if words.is_empty() { words } else { format!(": {words}") };
        self.error(kind, operation, format!("{reason} (status {status}{words})"))
    }

    /// The answer has not the form that it should have.
    pub(super) fn nonsense(&self, operation: Operation) -> StoreError {
        self.error(unclear(operation), operation, "the service gives an answer that makes no sense")
    }

    pub(super) fn conflict(&self) -> StoreError {
        self.error(Kind::Conflict, Operation::Swap, "it is another version")
    }

    pub(super) fn error(&self, kind: Kind, operation: Operation, reason: impl Into<String>) -> StoreError {
        StoreError::new(kind, operation, "", &self.place, reason)
    }
}

/// A value that is not logged.
pub(super) fn secret(lease: &LeaseUrl, text: &str) -> Result<HeaderValue, StoreError> {
    let value = HeaderValue::from_str(text);
    let mut value = value.map_err(|_| lease.invalid("the token has characters that no header may have"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The version of a record where the service counts, and may come to the same number again after it was put back: the number, and
/// which writing that was.
pub(super) fn version(count: &str, nonce: Nonce) -> Version {
    Version::new(format!("{count} {nonce}"))
}

/// What became of a request when no answer came.
fn unclear(operation: Operation) -> Kind {
    if operation == Operation::Swap { Kind::Ambiguous } else { Kind::Unavailable }
}

/// Whether what is sent to the service at `base` leaves this machine as it is.
fn is_readable(base: &str) -> bool {
    let Ok(url) = Url::parse(base) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).trim_end_matches('.');
    let is_here = match host.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    };
    url.scheme() == "http" && !is_here
}

/// What the options say.
fn tls_of(lease: &LeaseUrl) -> Result<Tls, StoreError> {
    let option = |wanted: &str| lease.url.query_pairs().find(|(name, _)| name == wanted).map(|(_, value)| value);
    let read = |name: &str| {
        let read = |path: std::borrow::Cow<'_, str>| {
            std::fs::read(&*path).map_err(|e| lease.invalid(format!("read the {name} {path}: {e}")))
        };
        option(name).map(read).transpose()
    };
    let skip_verify = match option("skip-verify").as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => return Err(lease.invalid(format!("option skip-verify is true or false, not {other:?}"))),
    };
    let identity = match (read("cert-file")?, read("key-file")?) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some([cert, b"\n".to_vec(), key].concat()),
        _ => return Err(lease.invalid("cert-file and key-file go together")),
    };
    Ok(Tls { ca: read("ca-file")?, identity, skip_verify })
}

/// An error and its causes, without the URL, which the message has already.
fn in_words(error: &reqwest::Error) -> String {
    let mut text =
        if error.is_connect() { "connect".to_owned() } else { "the exchange with the service failed".to_owned() };
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        let words = e.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_this_machine_without_tls_can_be_read() {
        for host in
            ["10.0.0.1", "consul.example:8500", "[fd00::1]:2379", "0.0.0.0", "localhost.example", "[::ffff:10.0.0.1]"]
        {
            assert!(is_readable(&format!("http://{host}")), "{host}");
            assert!(!is_readable(&format!("https://{host}")), "{host}");
        }
        for host in [
            "127.0.0.1:2379",
            "127.1.2.3",
            "[::1]:8500",
            "[::ffff:127.0.0.1]",
            "localhost:1",
            "LocalHost.",
            "a.localhost",
        ] {
            assert!(!is_readable(&format!("http://{host}")), "{host}");
        }
    }
}
