//! HTTP/1.1 at the same address: for applications, in whose languages it needs no library ([`super::waiting`]). Followers speak HTTP/2.
//!
//! Which of the two it is, the first bytes say: no request of HTTP/1.1 begins as every connection of HTTP/2 does (RFC 9113, section 3.4).

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::SILENCE_MAX;
use super::query::Query;
use super::server::{HEADERS_BYTES_MAX, Server};
use super::waiting::WAIT;

/// With this every connection of HTTP/2 begins, and no request of HTTP/1.1.
const HTTP2_BEGIN: &[u8; 4] = b"PRI ";

/// A connection of which something was read already.
#[derive(Debug)]
pub(super) struct Begun<S> {
    first: [u8; HTTP2_BEGIN.len()],
    /// Of these bytes: how many there are, and how many were given on.
    len: usize,
    given: usize,
    stream: S,
}

impl<S: AsyncRead + Unpin> Begun<S> {
    /// Reads as much as shows what is spoken.
    ///
    /// # Errors
    /// The connection was lost. One that was closed before has nothing.
    pub(super) async fn new(mut stream: S) -> io::Result<Self> {
        let (mut first, mut len) = ([0; HTTP2_BEGIN.len()], 0);
        while len < first.len() && first[..len] == HTTP2_BEGIN[..len] {
            match stream.read(&mut first[len..]).await? {
                0 => break,
                more => len += more,
            }
        }
        Ok(Self { first, len, given: 0, stream })
    }

    /// Whether HTTP/2 is spoken, or nothing at all.
    pub(super) fn is_http2(&self) -> bool {
        self.first[..self.len] == HTTP2_BEGIN[..self.len]
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Begun<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.given < self.len && buf.remaining() > 0 {
            let end = self.len.min(self.given + buf.remaining());
            buf.put_slice(&self.first[self.given..end]);
            self.given = end;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Begun<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// The requests of a connection.
pub(super) async fn requests(server: &Arc<Server>, stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), String> {
    let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(server, &request).await) });
    let mut builder = hyper::server::conn::http1::Builder::new();
    // Whoever asks for nothing is closed, as over HTTP/2 whoever is silent.
    builder.timer(TokioTimer::new()).header_read_timeout(SILENCE_MAX).max_buf_size(HEADERS_BYTES_MAX as usize);
    builder.serve_connection(TokioIo::new(stream), service).await.map_err(|e| e.to_string())
}

async fn answer(server: &Arc<Server>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !server.admits(request.headers()) {
        let mut refused = refuse(StatusCode::UNAUTHORIZED, "the token is missing or wrong");
        refused.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        return refused;
    }
    let path = request.uri().path();
    if path != WAIT {
        let text = format!("there is no {path} here over HTTP/1.1: followers speak HTTP/2");
        return refuse(StatusCode::NOT_FOUND, &text);
    }
    if request.method() != Method::GET {
        return refuse(StatusCode::BAD_REQUEST, "only GET is known");
    }
    let Some(_permit) = server.permit() else { return refuse(StatusCode::SERVICE_UNAVAILABLE, "too many requests") };
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let (status, json) = server.wait(&query).await;
    json_of(status, &json)
}

fn refuse(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    json_of(status, &serde_json::json!({ "error": text }))
}

fn json_of(status: StatusCode, json: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{json}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn begun(bytes: &[u8]) -> (bool, Vec<u8>) {
        let mut begun = Begun::new(bytes).await.unwrap();
        let (is_http2, mut all, mut some) = (begun.is_http2(), Vec::new(), [0; 3]);
        loop {
            match begun.read(&mut some).await.unwrap() {
                0 => return (is_http2, all),
                len => all.extend(&some[..len]),
            }
        }
    }

    #[tokio::test]
    async fn the_first_bytes_say_what_is_spoken_and_are_not_lost() {
        for (bytes, is_http2) in [
            (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], true),
            (b"GET / HTTP/1.1\r\n", false),
            (b"PRINT / HTTP/1.1\r\n", false),
            (b"P", true),
            (b"", true),
        ] {
            assert_eq!(begun(bytes).await, (is_http2, bytes.to_vec()));
        }
    }
}
