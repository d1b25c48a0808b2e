//! Requests and what their answers mean.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, HeaderMap};
use reqwest::{Body, Client, Method};

use super::multistatus::{self, PROPFIND, Resource, http_date, plain_etag};
use crate::{Operation, StoreError, StoreErrorKind as Kind, Version};

/// Longest wait for an answer, beside the time for bytes.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Slowest line that is waited for, in bytes per second.
const BYTES_PER_SECOND_MIN: u64 = 64 << 10;

/// Largest answer that is no object: a list of some 100,000 names.
const LIST_BYTES_MAX: u64 = 64 << 20;

/// Largest object that [`Dav::get`] leaves time for.
pub(super) const GET_BYTES_ASSUMED: u64 = 256 << 20;

/// Largest buffer that is set aside before its bytes have come.
const READ_AHEAD_MAX: u64 = 64 << 20;

/// A server, and where on it the store lies.
#[derive(Clone)]
pub(super) struct Dav {
    pub(super) client: Client,
    /// `https://host:port/path/`, encoded.
    pub(super) base: String,
    /// The value of the header, if there are credentials.
    pub(super) authorization: Option<reqwest::header::HeaderValue>,
    pub(super) description: String,
}

impl std::fmt::Debug for Dav {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dav").field("base", &self.base).finish_non_exhaustive()
    }
}

/// What is asked, of which object, for messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) operation: Operation,
    pub(super) key: &'a str,
}

/// A request that changes nothing, or one that may have when no answer comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    Change,
}

/// The head of an answer and all of its body.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Start, end and size of the whole in `Content-Range: bytes 0-9/100`.
    pub(super) fn content_range(&self) -> Option<(u64, u64, u64)> {
        let (range, size) = self.header("content-range")?.strip_prefix("bytes ")?.split_once('/')?;
        let (start, last) = range.split_once('-')?;
        Some((start.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?, size.parse().ok()?))
    }

    /// The version that the headers of a GET tell.
    pub(super) fn version(&self, size: u64) -> Option<Version> {
        let modified = self.header("last-modified").and_then(http_date);
        version_of(self.header("etag").map(plain_etag), modified, size)
    }

    /// The version of the object that this is, or is a part of, if the answer tells one.
    pub(super) fn version_told(&self) -> Option<Version> {
        match (self.status, self.content_range()) {
            (200, _) => self.version(self.body.len() as u64),
            (206, Some((_, _, size))) => self.version(size),
            _ => None,
        }
    }
}

/// Time and size, which every server tells alike wherever it is asked, and which a swap makes later than they were; the ETag only where there
/// is no time. ETags differ: nginx has none in its lists, Apache marks them as weak for a second, wsgidav puts the name into them.
pub(super) fn version_of(
    etag: Option<String>,
    modified: Option<rhyolite_format::Timestamp>,
    size: u64,
) -> Option<Version> {
    match (modified, etag.filter(|e| !e.is_empty())) {
        (Some(time), _) => Some(Version::new(format!("{:x}-{size:x}", time.0 / 1000))),
        (None, Some(etag)) => Some(Version::new(etag)),
        (None, None) => None,
    }
}

impl Dav {
    pub(super) fn error(&self, asked: Asked<'_>, kind: Kind, reason: impl Into<String>) -> StoreError {
        StoreError::new(kind, asked.operation, asked.key, &self.description, reason)
    }

    /// The URL of what lies at `path` below the store's root. A folder's ends with a slash.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{}", self.base, encode(path))
    }

    /// Sends a request and reads the answer, within a limit that leaves time for `bytes` bytes.
    pub(super) async fn send(
        &self,
        asked: Asked<'_>,
        effect: Effect,
        bytes: u64,
        request: Request<'_>,
    ) -> Result<Answer, StoreError> {
        let limit = ANSWER_TIMEOUT + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN);
        let body_max = if asked.operation == Operation::List { LIST_BYTES_MAX } else { u64::MAX };
        match tokio::time::timeout(limit, self.exchange(request, body_max)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Failed::Transport(e))) => {
                let open = effect == Effect::Change && !e.is_connect() && !e.is_builder();
                Err(self.error(asked, if open { Kind::Ambiguous } else { Kind::Unavailable }, in_words(&e)))
            }
            Ok(Err(Failed::TooLarge)) => Err(self.error(asked, Kind::Corrupt, "the answer is larger than any list")),
            Err(_) => {
                let kind = if effect == Effect::Change { Kind::Ambiguous } else { Kind::Unavailable };
                Err(self.error(asked, kind, format!("no answer within {} s", limit.as_secs())))
            }
        }
    }

    async fn exchange(&self, request: Request<'_>, body_max: u64) -> Result<Answer, Failed> {
        let method = Method::from_bytes(request.method.as_bytes()).expect("methods are constants of this module");
        let mut builder = self.client.request(method, &request.url);
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        if let Some(authorization) = &self.authorization {
            builder = builder.header(AUTHORIZATION, authorization.clone());
        }
        let mut response = builder.body(request.body).send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let mut body = BytesMut::with_capacity(response.content_length().unwrap_or(0).min(READ_AHEAD_MAX) as usize);
        while let Some(chunk) = response.chunk().await? {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > body_max {
                return Err(Failed::TooLarge);
            }
        }
        Ok(Answer { status, headers, body: body.freeze() })
    }

    /// What a status means that the caller has no meaning of its own for.
    pub(super) fn refusal(&self, asked: Asked<'_>, effect: Effect, answer: &Answer) -> StoreError {
        let status = answer.status;
        let unclear = if effect == Effect::Change { Kind::Ambiguous } else { Kind::Unavailable };
        let (kind, reason) = match status {
            401 | 403 => (Kind::Denied, "the server refuses the credentials or the access"),
            404 | 410 => (Kind::NotFound, "there is no such object"),
            413 => (Kind::Invalid, "the server takes no body of this size: raise its limit"),
            423 => (Kind::Unavailable, "somebody holds a WebDAV lock on it"),
            507 => (Kind::Full, "no space is left"),
            300..=399 => (Kind::Invalid, "the server answers with a redirect: is the URL right?"),
            405 | 501 => (Kind::Invalid, "the server does not know the method: is WebDAV enabled there?"),
            408 | 425 | 429 | 500.. => (unclear, "the server failed"),
            400.. => (Kind::Invalid, "the server refuses the request"),
            _ => (unclear, "the server gives an answer that makes no sense"),
        };
        self.error(asked, kind, format!("{reason} (status {status})"))
    }

    /// The resource at `path` and, with `depth` 1, those in it. `None` if there is none.
    pub(super) async fn look(
        &self,
        asked: Asked<'_>,
        path: &str,
        depth: u8,
    ) -> Result<Option<Vec<Resource>>, StoreError> {
        let headers = vec![("depth", depth.to_string()), ("content-type", "application/xml".to_owned())];
        let request = Request { method: "PROPFIND", url: self.url(path), headers, body: PROPFIND.into() };
        let answer = self.send(asked, Effect::None, 0, request).await?;
        match answer.status {
            207 => {}
            404 | 410 => return Ok(None),
            // A folder without its slash, something below a file, a file with a slash behind it.
            301 | 409 => return Ok(None),
            400 if path.ends_with('/') => return Ok(None),
            _ => return Err(self.refusal(asked, Effect::None, &answer)),
        }
        let text = std::str::from_utf8(&answer.body);
        let text = text.map_err(|_| self.error(asked, Kind::Corrupt, "the server's list is not UTF-8"))?;
        multistatus::parse(text).map(Some).map_err(|reason| self.error(asked, Kind::Corrupt, reason))
    }

    /// The decoded path on the server of what lies at `path` below the root, as `href`s have it.
    pub(super) fn server_path(&self, path: &str) -> String {
        let (_, rest) = self.base.split_once("://").expect("the base is a URL");
        let root = rest.split_once('/').map_or("", |(_, root)| root);
        let root = crate::url::percent_decode(root.trim_matches('/')).expect("the base was encoded here");
        let joined = format!("{root}/{path}");
        format!("/{}", joined.trim_matches('/'))
    }

    /// A request without a body that creates, moves or deletes.
    pub(super) async fn change(
        &self,
        asked: Asked<'_>,
        method: &'static str,
        path: &str,
        headers: Vec<(&'static str, String)>,
    ) -> Result<Answer, StoreError> {
        let request = Request { method, url: self.url(path), headers, body: Body::from(Bytes::new()) };
        self.send(asked, Effect::Change, 0, request).await
    }

    /// Gives what lies at `from` the name `to`. `replace` says whether something may lie there.
    pub(super) async fn rename(
        &self,
        asked: Asked<'_>,
        from: &str,
        to: &str,
        replace: bool,
    ) -> Result<Answer, StoreError> {
        let overwrite = if replace { "T" } else { "F" };
        let headers = vec![("destination", self.url(to)), ("overwrite", overwrite.to_owned())];
        self.change(asked, "MOVE", from, headers).await
    }

    /// Makes the folder `path` (with a slash at its end) and those above it, the store's own included.
    pub(super) async fn make_folders(&self, asked: Asked<'_>, path: &str) -> Result<(), StoreError> {
        let mut missing: Vec<String> = vec![self.url(path)];
        let root_len = self.base.find("://").map_or(0, |at| at + 3);
        while let Some(url) = missing.last().cloned() {
            let request = Request { method: "MKCOL", url: url.clone(), headers: Vec::new(), body: Bytes::new().into() };
            let answer = self.send(asked, Effect::None, 0, request).await?;
            match answer.status {
                200..=299 | 405 => drop(missing.pop()),
                404 | 409 => {
                    let parent = url.trim_end_matches('/').rfind('/').filter(|at| *at > root_len);
                    let parent = parent.map(|at| url[..=at].to_owned()).filter(|p| missing.len() < 64 && *p != url);
                    missing.push(parent.ok_or_else(|| self.refusal(asked, Effect::None, &answer))?);
                }
                _ => return Err(self.refusal(asked, Effect::None, &answer)),
            }
        }
        Ok(())
    }
}

/// What is sent.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    pub(super) url: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Body,
}

enum Failed {
    Transport(reqwest::Error),
    TooLarge,
}

impl From<reqwest::Error> for Failed {
    fn from(error: reqwest::Error) -> Self {
        Self::Transport(error)
    }
}

/// An error and its causes, without the URL, which the message has already.
fn in_words(error: &reqwest::Error) -> String {
    let mut text =
        if error.is_connect() { "connect".to_owned() } else { "the exchange with the server failed".to_owned() };
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

/// Everything but unreserved characters and slashes as `%XX`.
pub(super) fn encode(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
