//! A proxy in front of the application of a node: reads are answered beside it once the database is as far as the client has seen, writes by the
//! primary's application. What goes where is decided in [`rhyolite_logic::proxy`].
//!
//! A client learns how far it has seen by a cookie, in LiteFS's form: `__txid`, sixteen hexadecimal digits. The primary's proxy sets it with the answer to a write, after everything that
//! was committed before that answer was captured, and is where the operator or the client wants it ([`durable`]).
//!
//! While nobody is the primary, and while an application does not listen yet, requests are held.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rhyolite_format::Txid;
use rhyolite_logic::proxy::{Asked, HOPS_MAX, Side, Step, next_step};
use rhyolite_logic::role::Role;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

pub use self::durable::Durable;
use self::exchange::{Answer, Failed, exchange, own};
pub use self::flight::Flight;
pub use self::primary::About;
use self::primary::Primary;
use crate::durability::{Level, Waits};
use crate::follow::trails::Trails;
use crate::status::StatusBoard;
use crate::stream::client::Access;

mod durable;
mod exchange;
mod flight;
mod primary;

/// What a client has seen.
const COOKIE: &str = "__txid";
/// How long a client tells that, in seconds, and that nobody could say it.
const COOKIE_AGE_S: u32 = 300;
const UNKNOWN_AGE_S: u32 = 10;
/// How long what was committed may take to be captured.
const CAPTURE_MAX: Duration = Duration::from_secs(2);
/// Time between two looks at what is waited for: at first, and later.
const LOOK: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));
/// Time between two looks whether the primary to which a request was passed on still is it.
const LOOK_AT_PRIMARY: Duration = Duration::from_millis(500);
/// Connections at a time; more wait.
const CONNECTIONS_MAX: usize = 4096;
/// How long the head of a request may take.
const HEAD_MAX: Duration = Duration::from_secs(30);
/// Says how many proxies have passed the request on.
const PASSED_ON: &str = "rhyolite-proxied";
/// Tells whether this node may get requests; LiteFS's path as well.
const HEALTH: [&str; 2] = ["/rhyolite/health", "/litefs/health"];

/// What a proxy is told.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Where requests come in.
    pub listen: SocketAddr,
    /// Where the proxies of other nodes reach this one, HOST:PORT.
    pub advertise: String,
    /// Where the application beside it listens, HOST:PORT.
    pub target: String,
    /// Where another listens that reads beside a replica; the same place when there is none.
    pub read_target: Option<String>,
    /// The folder of the databases.
    pub dir: PathBuf,
    /// The database whose commits are counted, by its path in the folder; the only one when there is none.
    pub database: Option<String>,
    /// Paths, with `*` for anything, that have nothing to do with the database.
    pub passthrough: Vec<String>,
    /// Paths that are written to by GET and HEAD as well.
    pub always_forward: Vec<String>,
    /// How long a read waits for the database before the primary answers it.
    pub read_wait: Duration,
    /// How long a request is held while there is no primary, or the application does not listen.
    pub hold: Duration,
    /// A replica that is farther behind is not healthy.
    pub lag_max: Duration,
    /// A write to a replica is answered with `fly-replay`, which Fly.io's own proxy follows, instead of being passed on.
    pub fly_replay: bool,
    /// Where the commits of a write must be before it is answered.
    pub durable: Durable,
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    config: ProxyConfig,
    board: Arc<StatusBoard>,
    waits: Waits,
    primary: Primary,
    flight: Flight,
    trails: Arc<Trails>,
    /// That no database is counted was said.
    said: Mutex<bool>,
}

impl Proxy {
    /// A proxy of the node whose figures are on `board`; `waits` says where its commits are. `access` is what nodes show each other, and
    /// `flight` counts the requests that the application has. `trails` know whose history the files of a replica are.
    pub fn new(
        config: ProxyConfig,
        board: Arc<StatusBoard>,
        waits: Waits,
        access: Access,
        (flight, trails): (Flight, Arc<Trails>),
    ) -> Self {
        Self { config, board, waits, primary: Primary::new(access), flight, trails, said: Mutex::new(false) }
    }

    /// Answers until the task is dropped.
    pub async fn serve(self, listener: TcpListener) {
        let (this, permits) = (Arc::new(self), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
        loop {
            let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("accept a client of the proxy: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let this = Arc::clone(&this);
            tokio::spawn(async move {
                this.connection(stream, from).await;
                drop(permit);
            });
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, from: SocketAddr) {
        // A connection that is gone needs no delay either.
        let _ = stream.set_nodelay(true);
        let service = service_fn(move |request| {
            let this = Arc::clone(&self);
            async move { Ok::<_, Infallible>(this.answer(request, from).await) }
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
        let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        if let Err(error) = connection.await {
            tracing::debug!(%from, "a client of the proxy: {error}");
        }
    }

    async fn answer(&self, request: Request<Incoming>, from: SocketAddr) -> Answer {
        if HEALTH.contains(&request.uri().path()) {
            return self.health();
        }
        let asked = self.asked(&request);
        let began = Instant::now();
        let is_late = || began.elapsed() >= self.config.hold;
        let (mut request, mut pause) = (request, LOOK.0);
        loop {
            let side = self.side();
            let has_waited = began.elapsed() >= self.config.read_wait;
            let step = next_step(asked, side, self.txid(asked, side), has_waited);
            let tried = match step {
                Step::Here => self.here(request, from, asked, side).await,
                Step::Primary if self.config.fly_replay => return self.replay(),
                Step::Primary => self.pass_on(request, from, asked).await,
                Step::Wait => Err(Failed::NotYet(
                    Box::new(request),
                    "there is no primary, or the database is not there yet".to_owned(),
                )),
            };
            let (back, why) = match tried {
                Ok(answer) => return answer,
                Err(Failed::Broken(text)) => return own(StatusCode::BAD_GATEWAY, &text),
                Err(Failed::NotYet(back, why)) => (back, why),
            };
            if is_late() {
                let mut answer =
                    own(StatusCode::SERVICE_UNAVAILABLE, &format!("waited for {:?}: {why}", self.config.hold));
                answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
                return answer;
            }
            request = *back;
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(LOOK.1);
        }
    }

    fn asked(&self, request: &Request<Incoming>) -> Asked {
        let path = request.uri().path();
        let is_one = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, path));
        let reads = matches!(*request.method(), Method::GET | Method::HEAD) && !is_one(&self.config.always_forward);
        Asked {
            is_write: !reads && *request.method() != Method::OPTIONS,
            is_untracked: is_one(&self.config.passthrough),
            hops: hops(request.headers()),
            seen: seen(request.headers()),
        }
    }

    fn side(&self) -> Side {
        match self.board.node() {
            Some(node) if node.is(Role::Primary) => Side::Primary,
            Some(node) if node.is(Role::Replica) => Side::Replica,
            Some(node) if node.is(Role::Demoting) || node.is(Role::Stopped) => Side::Leaving,
            _ => Side::Changing,
        }
    }

    /// How far a replica is: asked only when that decides something.
    fn txid(&self, asked: Asked, side: Side) -> Option<Txid> {
        asked.seen.filter(|_| side != Side::Primary)?;
        let name = self.database().filter(|name| self.trails.is_proved(name))?;
        let mut path = self.config.dir.join(name).into_os_string();
        path.push("-pos");
        let pos = std::fs::read_to_string(path).ok()?;
        pos.split('/').next()?.parse().ok()
    }

    /// The databases that are captured or followed.
    fn paths(&self) -> Vec<PathBuf> {
        let captured = self.board.databases().into_iter().map(|database| database.path.to_path_buf());
        let followed = self.board.node().map(|node| node.replicas).unwrap_or_default();
        let mut paths: Vec<PathBuf> = captured.chain(followed.into_iter().map(|replica| replica.path)).collect();
        paths.sort();
        paths.dedup();
        paths
    }

    /// The database whose commits are counted, by its path in the folder.
    fn database(&self) -> Option<String> {
        if let Some(name) = &self.config.database {
            return Some(name.clone());
        }
        let paths = self.paths();
        if paths.len() == 1 {
            return Some(paths[0].strip_prefix(&self.config.dir).ok()?.to_str()?.to_owned());
        }
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if paths.len() > 1 && !std::mem::replace(&mut *said, true) {
            tracing::warn!("{} databases: say by --proxy-db whose commits clients are to wait for", paths.len());
        }
        None
    }

    /// Asks the application beside the proxy.
    async fn here(
        &self,
        request: Request<Incoming>,
        from: SocketAddr,
        asked: Asked,
        side: Side,
    ) -> Result<Answer, Failed> {
        // Counted first, and looked at again then: whoever ends the application changes the role first, and waits for those that are counted.
        let flying = self.flight.enter();
        if self.side() != side {
            return Err(Failed::NotYet(Box::new(request), "the role of this node changes".to_owned()));
        }
        let is_replica = matches!(side, Side::Replica | Side::Changing);
        let reads = self.config.read_target.as_ref().filter(|_| is_replica);
        let is_held = asked.is_write && !asked.is_untracked && side == Side::Primary;
        let level = match is_held.then(|| self.level(request.headers())) {
            Some(Ok(level)) => level,
            Some(Err((status, text))) => return Ok(own(status, &text)),
            None => Level::Local,
        };
        let answer = exchange(request, reads.unwrap_or(&self.config.target), from, None).await;
        match answer {
            // There may be none on a replica.
            Err(Failed::NotYet(request, _)) if side == Side::Replica && asked.hops < HOPS_MAX => {
                if self.config.fly_replay { Ok(self.replay()) } else { self.pass_on(*request, from, asked).await }
            }
            Ok(answer) if asked.is_write && side == Side::Primary => Ok(self.held(answer, level, flying).await),
            other => other,
        }
    }

    /// Has the primary's proxy answer.
    async fn pass_on(&self, request: Request<Incoming>, from: SocketAddr, asked: Asked) -> Result<Answer, Failed> {
        let holder = self.board.node().and_then(|node| node.holder).filter(|holder| !holder.is_self);
        let Some(address) = holder.and_then(|holder| holder.address) else {
            return Err(Failed::NotYet(Box::new(request), "nobody knows where the primary is".to_owned()));
        };
        match self.primary.proxy_of(&address).await {
            Ok(place) => {
                // Whoever ends this process waits for it.
                let _flying = self.flight.enter();
                tokio::select! {
                    answer = exchange(request, &place, from, Some((PASSED_ON, asked.hops + 1))) => answer,
                    () = self.replaced(&address) => Err(Failed::Broken(format!("the primary {address} was lost"))),
                }
            }
            Err(why) => Err(Failed::NotYet(Box::new(request), why)),
        }
    }

    /// Until another node than this has been the primary for so long that this one cannot be holding a request any more.
    async fn replaced(&self, address: &str) {
        let mut since: Option<Instant> = None;
        while since.is_none_or(|since| since.elapsed() <= self.config.hold) {
            tokio::time::sleep(LOOK_AT_PRIMARY).await;
            let holder = self.board.node().and_then(|node| node.holder);
            let is_other = holder.is_some_and(|holder| holder.is_self || holder.address.as_deref() != Some(address));
            since = since.filter(|_| is_other).or_else(|| is_other.then(Instant::now));
        }
    }

    /// Fly.io's proxy sends the request to the machine of this name.
    fn replay(&self) -> Answer {
        let node = self.board.node();
        let machine = node.and_then(|node| node.holder).filter(|holder| !holder.is_self).map(|holder| holder.machine());
        let value = machine.and_then(|name| HeaderValue::from_str(&format!("instance={name}")).ok());
        let Some(value) = value else { return own(StatusCode::SERVICE_UNAVAILABLE, "nobody knows who the primary is") };
        // Whoever does not know the header must not take this for success.
        let mut answer = own(StatusCode::CONFLICT, "only the primary takes writes");
        answer.headers_mut().insert("fly-replay", value);
        answer
    }

    fn health(&self) -> Answer {
        let Some(node) = self.board.node() else { return own(StatusCode::SERVICE_UNAVAILABLE, "starting") };
        if node.is(Role::Primary) {
            return own(StatusCode::OK, "OK");
        }
        let lag = Duration::from_millis(node.lag().1);
        let is_followed = !node.replicas.is_empty() && node.replicas.iter().all(|replica| replica.txid.is_some());
        match () {
            () if !node.is(Role::Replica) => own(StatusCode::SERVICE_UNAVAILABLE, &node.role),
            () if !is_followed => own(StatusCode::SERVICE_UNAVAILABLE, "nothing was received yet"),
            () if lag > self.config.lag_max => own(StatusCode::SERVICE_UNAVAILABLE, &format!("{lag:?} behind")),
            () => own(StatusCode::OK, "OK"),
        }
    }
}

/// What a client has seen, by its cookie.
fn seen(headers: &HeaderMap) -> Option<Txid> {
    let all = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(name, _)| *name == COOKIE).filter_map(|(_, value)| value.parse().ok()).max()
}

/// How many proxies have passed a request on. Whatever else stands there is no reason to do so again.
fn hops(headers: &HeaderMap) -> u8 {
    let Some(value) = headers.get(PASSED_ON) else { return 0 };
    value.to_str().ok().and_then(|value| value.parse().ok()).unwrap_or(HOPS_MAX)
}

/// Whether a path is meant by a pattern, in which `*` stands for anything.
fn matches(pattern: &str, path: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = path.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// A body of our own.
type Own = Full<bytes::Bytes>;

/// An answer without its body, for whoever writes one.
fn head(status: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (pattern, path, is_meant) in [
            ("*.png", "/a/b.png", true),
            ("/static/*", "/static/a/b", true),
            ("/static/*", "/other/static/", false),
            ("/a/*/c*d", "/a/b/x/cxd", true),
            ("/a/*/c*d", "/a/b/x/cx", false),
            ("/exact", "/exact", true),
            ("/exact", "/exact/", false),
            ("*", "/", true),
            ("/a*a", "/a", false),
        ] {
            assert_eq!(matches(pattern, path), is_meant, "{pattern} {path}");
        }
    }

    #[test]
    fn the_newest_of_a_clients_cookies_counts() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::from_static("a=b; __txid=000000000000000a; __txid=x"));
        headers.append(header::COOKIE, HeaderValue::from_static("__txid=0000000000000002"));
        assert_eq!(seen(&headers), Txid::new(10));
        assert_eq!(seen(&HeaderMap::new()), None);
    }
}
