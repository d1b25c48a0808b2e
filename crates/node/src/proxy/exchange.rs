//! One request and its answer, passed through: bodies as they come, and what a connection becomes after an upgrade (WebSocket).

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderName, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::{Body, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Own, head};

/// How long the other end may take to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(2);
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// They are about one connection, not about the request (RFC 9110, section 7.6.1).
const OF_CONNECTION: [HeaderName; 7] = [
    CONNECTION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// An answer of ours, or one that is passed through.
pub(super) type Answer = Response<Either<Incoming, Own>>;

/// Why there is no answer.
pub(super) enum Failed {
    /// Nothing of the request was sent: it may be tried again.
    NotYet(Box<Request<Incoming>>, String),
    /// The other end has got it, or part of it.
    Broken(String),
}

/// An answer of ours, one line.
pub(super) fn own(status: StatusCode, text: &str) -> Answer {
    head(status).map(|()| Either::Right(Full::new(Bytes::from(format!("{text}\n")))))
}

/// Sends a request to HOST:PORT, with this header more, and gives the answer as soon as its head is there.
pub(super) async fn exchange(
    mut request: Request<Incoming>,
    to: &str,
    from: SocketAddr,
    mark: Option<(&'static str, u8)>,
) -> Result<Answer, Failed> {
    let connected = match tokio::time::timeout(CONNECT_MAX, TcpStream::connect(to)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            return Err(Failed::NotYet(Box::new(request), format!("{to}: {}", crate::config::io_text(&error))));
        }
        Err(_) => return Err(Failed::NotYet(Box::new(request), format!("{to} does not accept a connection"))),
    };
    // A connection that is gone needs no delay either.
    let _ = connected.set_nodelay(true);
    let broken = |error: hyper::Error| Failed::Broken(format!("{to}: {error}"));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(connected)).await.map_err(broken)?;
    // Its end is seen by whoever waits for the answer.
    tokio::spawn(async move { drop(connection.with_upgrades().await) });
    let upgrade = upgrade_of(request.headers());
    let ours = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
    let request = prepare(request, from, upgrade.as_ref(), mark);
    let mut response = sender.send_request(request).await.map_err(broken)?;
    let is_upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    match ours.filter(|_| is_upgraded) {
        Some(ours) => {
            let theirs = hyper::upgrade::on(&mut response);
            tokio::spawn(async move {
                let Ok((ours, theirs)) = tokio::try_join!(ours, theirs) else { return };
                let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
                // Either end may leave at any time.
                let _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await;
            });
        }
        None => strip(response.headers_mut()),
    }
    Ok(response.map(Either::Left))
}

/// What the connection is to become, if anything.
fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let asks = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let asks = asks.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(UPGRADE).filter(|_| asks).cloned()
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in OF_CONNECTION.iter().chain(&named) {
        headers.remove(name);
    }
}

/// The request as it goes on: without what was about the connection, with who asks.
fn prepare(
    mut request: Request<Incoming>,
    from: SocketAddr,
    upgrade: Option<&HeaderValue>,
    mark: Option<(&'static str, u8)>,
) -> Request<Incoming> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let path = path.parse().unwrap_or_else(|_| http::Uri::from_static("/"));
    *request.uri_mut() = path;
    *request.version_mut() = http::Version::HTTP_11;
    // A request that may be without a body says so when it has one.
    let is_chunked = !request.body().is_end_stream() && request.body().size_hint().exact().is_none();
    let headers = request.headers_mut();
    strip(headers);
    if is_chunked {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade.clone());
    }
    let ip = from.ip().to_string();
    let chain = match headers.get(&FORWARDED_FOR).and_then(|before| before.to_str().ok()) {
        Some(before) => format!("{before}, {ip}"),
        None => ip,
    };
    if let Ok(chain) = HeaderValue::from_str(&chain) {
        headers.insert(FORWARDED_FOR, chain);
    }
    if let Some(host) = headers.get(HOST).cloned() {
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
    headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    if let Some((name, value)) = mark {
        headers.insert(name, HeaderValue::from(u16::from(value)));
    }
    // HTTP/1.1 wants one; a client of version 1.0 need not have sent it.
    headers.entry(header::HOST).or_insert(HeaderValue::from_static("localhost"));
    request
}
