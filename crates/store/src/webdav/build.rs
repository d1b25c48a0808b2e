//! From `webdav://` and `webdavs://` URLs to a client.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderValue;
use reqwest::{Certificate, Client, redirect};

use super::WebDav;
use super::request::{Dav, encode};
use crate::url::{StoreUrl, percent_decode};
use crate::{Environment, StoreError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const READ_STALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Before a server closes it, for a request that meets a closing connection cannot be told from one that was applied.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// The store at the URL's path.
pub(crate) fn webdav(url: &mut StoreUrl, environment: &Environment) -> Result<WebDav, StoreError> {
    if url.host.is_empty() {
        return Err(url.invalid(format!("the server is missing: {}://HOST/path", url.scheme)));
    }
    if url.had_password {
        return Err(url.invalid("a password does not belong into the URL: put it into WEBDAV_PASSWORD"));
    }
    let user = url.user.clone().or_else(|| environment.get("WEBDAV_USERNAME"));
    let authorization = match user {
        None => None,
        Some(user) => {
            let password = environment.get("WEBDAV_PASSWORD").unwrap_or_default();
            let basic = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
            let mut value = HeaderValue::from_str(&basic).expect("base64 has no control characters");
            value.set_sensitive(true);
            Some(value)
        }
    };
    let client = client(url)?;
    url.finish()?;
    let scheme = if url.scheme == "webdavs" { "https" } else { "http" };
    let path = percent_decode(&url.path).ok_or_else(|| url.invalid("the path is badly encoded"))?;
    let mut base = format!("{scheme}://{}/{}", url.host, encode(&path));
    if !base.ends_with('/') {
        base.push('/');
    }
    if reqwest::Url::parse(&base).is_err() {
        return Err(url.invalid("the host is no name or address, or the port no number"));
    }
    Ok(WebDav::new(Dav { client, base, authorization, description: url.shown.trim_end_matches('/').to_owned() }))
}

fn client(url: &mut StoreUrl) -> Result<Client, StoreError> {
    let mut builder = Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_STALL_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .redirect(redirect::Policy::none())
        .tls_danger_accept_invalid_certs(url.take_flag(&["skip-verify"])?.unwrap_or(false));
    if let Some(path) = url.take(&["ca-file"]) {
        let pem = std::fs::read(&path).map_err(|e| url.invalid(format!("read the CA file {path}: {e}")))?;
        let certificates = Certificate::from_pem_bundle(&pem);
        for certificate in certificates.map_err(|e| url.invalid(format!("the CA file {path}: {e}")))? {
            builder = builder.add_root_certificate(certificate);
        }
    }
    builder.build().map_err(|e| url.invalid(format!("prepare the HTTP client: {e}")))
}
