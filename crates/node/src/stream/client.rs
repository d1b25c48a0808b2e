//! The follower's end of a connection to a node (docs/spec/stream.md).

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use rhyolite_format::DecodeError;
use rhyolite_format::stream::Frame;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::server::silence;
use super::tls::{self, ClientFiles};
use crate::config::cluster::Token;

/// Window of one stream: what may come of a database before what came was taken.
const STREAM_WINDOW: u32 = 1 << 20;
/// Window of a connection. The streams' windows are what bounds it.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// Bytes of the headers of an answer.
const HEADERS_BYTES_MAX: u32 = 32 << 10;
/// The longest line that a server may refuse with.
const REFUSAL_BYTES_MAX: u64 = 4096;

/// Where a node listens, as it is written: `http://HOST:PORT`, or with TLS `https://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    is_secret: bool,
    host: String,
    port: u16,
}

impl Address {
    /// Whether it is spoken to over TLS.
    pub fn is_secret(&self) -> bool {
        self.is_secret
    }

    /// The name or the IP address of its machine.
    pub fn host(&self) -> &str {
        &self.host
    }
}

/// What a node is shown.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The secret of its followers.
    pub token: Option<Token>,
    /// Over TLS: who it must be, and who we are.
    pub tls: ClientFiles,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text:?} is no address of a node: write https://HOST:PORT, or without TLS http://127.0.0.1:PORT")
        };
        let secret = text.strip_prefix("https://").map(|place| (true, place));
        let plain = text.strip_prefix("http://").map(|place| (false, place));
        let (is_secret, place) = secret.or(plain).ok_or_else(wrong)?;
        let place = place.trim_end_matches('/');
        let (host, port) = place.rsplit_once(':').ok_or_else(wrong)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().map_err(|_| wrong())?;
        if host.is_empty() || host.contains(['/', '@', '?']) {
            return Err(wrong());
        }
        Ok(Self { is_secret, host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_secret { "https" } else { "http" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// Why nothing came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkError {
    /// The connection is gone, or could not be made: another may be had.
    Lost(String),
    /// The server does not want to.
    Refused {
        /// How it says so.
        status: StatusCode,
        /// The kind of the store's error, if that is why.
        kind: Option<String>,
        /// Its words.
        text: String,
    },
    /// What came is no frame.
    Malformed(DecodeError),
    /// What came makes no sense where it came.
    Unexpected(String),
    /// The address is not one to which secrets may go without TLS.
    NotLoopback(String),
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(text) | Self::Unexpected(text) | Self::NotLoopback(text) => f.write_str(text),
            Self::Refused { status, text, .. } => write!(f, "refused with status {}: {text}", status.as_u16()),
            Self::Malformed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LinkError {}

/// A connection, closed when its last copy is dropped.
#[derive(Clone, Debug)]
pub struct Link {
    send: SendRequest<Bytes>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// What stands before the path of a request.
    base: String,
    token: Option<Token>,
    task: AbortHandle,
    /// Turns true at the end of the connection.
    ended: watch::Sender<bool>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Makes a connection to a machine. Without TLS nothing but loopback is reached.
///
/// # Errors
/// Nobody listens there, or it is no place for a connection without TLS.
pub(super) async fn dial(address: &Address) -> Result<TcpStream, LinkError> {
    let stream = TcpStream::connect((address.host.as_str(), address.port)).await;
    let stream = stream.map_err(|e| LinkError::Lost(crate::config::io_text(&e)))?;
    let peer = stream.peer_addr().map_err(lost)?;
    stream.set_nodelay(true).map_err(lost)?;
    if !address.is_secret && !peer.ip().is_loopback() {
        let text = format!("{peer} is not a loopback address: without TLS (https://) nothing is sent there");
        return Err(LinkError::NotLoopback(text));
    }
    Ok(stream)
}

async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
) -> Result<(SendRequest<Bytes>, Connection<S>), LinkError> {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW).enable_push(false);
    builder.max_header_list_size(HEADERS_BYTES_MAX);
    builder.handshake(stream).await.map_err(lost)
}

fn lost(error: impl fmt::Display) -> LinkError {
    LinkError::Lost(error.to_string())
}

impl Link {
    /// Connects, within a time.
    ///
    /// # Errors
    /// Nobody listens there, it is not who it should be, or it is not a place for a connection without TLS.
    pub async fn connect(address: &Address, access: &Access, within: Duration) -> Result<Self, LinkError> {
        let connected = tokio::time::timeout(within, Self::connect_now(address, access)).await;
        connected.unwrap_or_else(|_| Err(LinkError::Lost(format!("no answer within {within:?}"))))
    }

    async fn connect_now(address: &Address, access: &Access) -> Result<Self, LinkError> {
        let stream = dial(address).await?;
        let (base, token) = (address.to_string(), access.token.clone());
        if address.is_secret {
            let stream = tls::connect(&access.tls, &address.host, stream).await.map_err(LinkError::Lost)?;
            return Self::begin(base, token, stream).await;
        }
        Self::begin(base, token, stream).await
    }

    /// A connection that was made by the other end, which has proved who it is: it is asked as if it had been dialed.
    ///
    /// # Errors
    /// It is gone already.
    pub(super) async fn accepted(
        from: SocketAddr,
        token: Option<Token>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Self, LinkError> {
        let (send, mut connection) = handshake(stream).await?;
        // It may be that nobody asks anything for a long time.
        let silence = silence(connection.ping_pong().expect("asked for once"));
        let ended = async move {
            tokio::select! {
                ended = connection => drop(ended),
                why = silence => tracing::debug!("a connection is given up: {why}"),
            }
        };
        Ok(Self::new(format!("http://{from}"), token, send, ended))
    }

    /// Begins to speak HTTP/2.
    async fn begin(
        base: String,
        token: Option<Token>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Self, LinkError> {
        let (send, connection) = handshake(stream).await?;
        // Its end is seen by everybody who waits for an answer.
        Ok(Self::new(base, token, send, async move { drop(connection.await) }))
    }

    fn new(
        base: String,
        token: Option<Token>,
        send: SendRequest<Bytes>,
        connection: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let (ended, _) = watch::channel(false);
        let tell = ended.clone();
        let task = tokio::spawn(async move {
            connection.await;
            tell.send_replace(true);
        });
        Self { send, shared: Arc::new(Shared { base, token, task: task.abort_handle(), ended }) }
    }

    /// Closes the connection, whoever still has a copy.
    pub fn close(&self) {
        self.shared.task.abort();
        self.shared.ended.send_replace(true);
    }

    /// Whether its end is known.
    pub fn is_closed(&self) -> bool {
        *self.shared.ended.borrow()
    }

    /// Ends with the connection.
    pub(super) async fn closed(&self) {
        // The sender is borrowed: it tells.
        let _ = self.shared.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Whether both are copies of one connection.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    async fn get(&self, path: &str) -> Result<Response<RecvStream>, LinkError> {
        self.ask(Method::GET, path).await
    }

    /// Asks for something to be done, of which nothing is answered.
    ///
    /// # Errors
    /// It was refused.
    pub async fn post(&self, path: &str) -> Result<(), LinkError> {
        self.ask(Method::POST, path).await.map(drop)
    }

    /// Sends bytes, and gives the answer as a whole.
    ///
    /// # Errors
    /// It was refused, the answer is too long, or was cut off.
    pub async fn send(&self, path: &str, bytes: Bytes, bytes_max: u64) -> Result<Bytes, LinkError> {
        let (response, mut body) = self.begin_asking(Method::POST, path, false).await?;
        body.send_data(bytes, true).map_err(lost)?;
        read_whole(answered(response).await?.into_body(), bytes_max).await
    }

    async fn ask(&self, method: Method, path: &str) -> Result<Response<RecvStream>, LinkError> {
        answered(self.begin_asking(method, path, true).await?.0).await
    }

    /// Sends a request; `is_all`: nothing follows.
    async fn begin_asking(
        &self,
        method: Method,
        path: &str,
        is_all: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), LinkError> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.shared.base));
        if let Some(token) = &self.shared.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.secret()));
        }
        let request = request.body(()).map_err(lost)?;
        let mut send = self.send.clone().ready().await.map_err(lost)?;
        send.send_request(request, is_all).map_err(lost)
    }

    /// An answer as a whole, with its headers.
    ///
    /// # Errors
    /// It was refused, is too long, or was cut off.
    pub async fn read(&self, path: &str, bytes_max: u64) -> Result<(HeaderMap, Bytes), LinkError> {
        let (parts, body) = self.get(path).await?.into_parts();
        Ok((parts.headers, read_whole(body, bytes_max).await?))
    }

    /// An answer of frames.
    ///
    /// # Errors
    /// It was refused.
    pub async fn frames(&self, path: &str) -> Result<Frames, LinkError> {
        Ok(Frames::new(self.get(path).await?.into_body()))
    }

    /// An answer of frames, while frames are sent: as a node that says what it has reached.
    ///
    /// # Errors
    /// It was refused.
    pub async fn frames_both_ways(&self, path: &str) -> Result<(Frames, Replies), LinkError> {
        let (response, replies) = self.begin_asking(Method::GET, path, false).await?;
        let body = answered(response).await?.into_body();
        Ok((Frames::new(body), Replies(replies)))
    }
}

/// The answer to a request, if it is not a refusal.
async fn answered(response: ResponseFuture) -> Result<Response<RecvStream>, LinkError> {
    let response = response.await.map_err(lost)?;
    if response.status() == StatusCode::OK {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let text = read_whole(body, REFUSAL_BYTES_MAX).await?;
    let kind = parts.headers.get(super::server::ERROR_HEADER).and_then(|kind| kind.to_str().ok());
    let text = String::from_utf8_lossy(&text).trim_end().to_owned();
    Err(LinkError::Refused { status: parts.status, kind: kind.map(str::to_owned), text })
}

/// The way back, as long as the stream is open.
#[derive(Debug)]
pub struct Replies(SendStream<Bytes>);

impl Replies {
    /// Sends a frame that says all that those before it have said, without waiting. While the other end has not read so many that its window is full, nothing is sent and nothing kept: the next
    /// frame says more. A stream that is over shows when it is read.
    pub fn say(&mut self, frame: &Frame) {
        let bytes = Bytes::from(frame.encode());
        self.0.reserve_capacity(bytes.len());
        if self.0.capacity() >= bytes.len() {
            let _ = self.0.send_data(bytes, false);
        }
    }
}

/// The next piece of a body. Its room in the window is given back at once: nobody asks for more than what is wanted next.
async fn piece(body: &mut RecvStream) -> Result<Option<Bytes>, LinkError> {
    let Some(piece) = body.data().await else { return Ok(None) };
    let piece = piece.map_err(lost)?;
    body.flow_control().release_capacity(piece.len()).map_err(lost)?;
    Ok(Some(piece))
}

pub(super) async fn read_whole(mut body: RecvStream, bytes_max: u64) -> Result<Bytes, LinkError> {
    let mut whole = BytesMut::new();
    while let Some(piece) = piece(&mut body).await? {
        if (whole.len() + piece.len()) as u64 > bytes_max {
            return Err(LinkError::Unexpected(format!("an answer of more than {bytes_max} bytes")));
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

/// Frames as they come.
#[derive(Debug)]
pub struct Frames {
    body: RecvStream,
    buffer: BytesMut,
    /// No frame may be longer.
    len_max: usize,
}

impl Frames {
    /// Those of a body.
    fn new(body: RecvStream) -> Self {
        Self::of_at_most(usize::MAX, body)
    }

    /// Those of a body that has none of more bytes.
    pub(super) fn of_at_most(len_max: usize, body: RecvStream) -> Self {
        Self { body, buffer: BytesMut::new(), len_max }
    }

    /// The next frame and its bytes; `None` at the end. May be dropped and asked again.
    ///
    /// # Errors
    /// The connection is gone, or what came is no frame.
    pub async fn next(&mut self) -> Result<Option<(Frame, Bytes)>, LinkError> {
        loop {
            let len = Frame::len(&self.buffer).map_err(LinkError::Malformed)?;
            if let Some(len) = len.filter(|len| *len > self.len_max) {
                return Err(LinkError::Unexpected(format!("a frame of {len} bytes")));
            }
            if let Some(len) = len.filter(|len| self.buffer.len() >= *len) {
                let bytes = self.buffer.split_to(len).freeze();
                let frame = Frame::decode(&bytes).map_err(LinkError::Malformed)?;
                return Ok(Some((frame, bytes)));
            }
            match piece(&mut self.body).await? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(LinkError::Lost("cut off within a frame".to_owned())),
            }
        }
    }

    /// The next frame if it is here already.
    ///
    /// # Errors
    /// As for [`Frames::next`].
    pub async fn next_at_hand(&mut self) -> Result<Option<(Frame, Bytes)>, LinkError> {
        tokio::select! {
            biased;
            next = self.next() => next,
            () = std::future::ready(()) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for text in ["http://127.0.0.1:20202", "http://[::1]:1", "http://localhost:7", "https://node.example:20202"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("http://h:1/".parse::<Address>().unwrap().to_string(), "http://h:1");
        for wrong in
            ["127.0.0.1:1", "http://", "http://h", "http://:1", "http://h:x", "http://u@h:1", "https://h", "ftp://h:1"]
        {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
