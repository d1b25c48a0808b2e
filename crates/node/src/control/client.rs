//! Asking a running process by its control socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a process says at most, in bytes.
const ANSWER_MAX: u64 = 256 << 20;

/// Why there is no answer.
#[derive(Debug)]
pub enum AskError {
    /// Nobody listens, or not in this language.
    Io(io::Error),
    /// It was refused.
    Refused(String),
    /// It took too long.
    TimedOut(String),
}

impl From<io::Error> for AskError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Sends one request and waits for its answer.
///
/// # Errors
/// See [`AskError`].
pub fn ask<B: Serialize, T: DeserializeOwned>(
    socket: &Path,
    method: &str,
    path: &str,
    body: &B,
    patience: Duration,
) -> Result<T, AskError> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: rhyolite\r\nConnection: close\r\n").into_bytes();
    if method == "POST" {
        let body = serde_json::to_vec(body).map_err(io::Error::other)?;
        write!(request, "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len())?;
        request.extend(body);
    } else {
        request.extend(b"\r\n");
    }
    stream.write_all(&request)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    parse(&answer)
}

fn parse<T: DeserializeOwned>(answer: &[u8]) -> Result<T, AskError> {
    let odd = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(|| odd("no HTTP answer"))?;
    let head = std::str::from_utf8(&answer[..end]).map_err(|_| odd("no HTTP answer"))?;
    let status: u16 = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| odd("no HTTP answer"))?;
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = &answer[end + 4..];
    let body = if is_chunked { unchunk(body).ok_or_else(|| odd("a broken HTTP answer"))? } else { body.to_vec() };
    if status == 200 {
        return serde_json::from_slice(&body).map_err(|e| odd(&format!("an answer of another version: {e}")).into());
    }
    let value: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = value["error"].as_str().map_or_else(|| String::from_utf8_lossy(&body).into_owned(), str::to_owned);
    Err(if status == 504 { AskError::TimedOut(text) } else { AskError::Refused(text) })
}

fn unchunk(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|w| w == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).ok()?.trim(), 16).ok()?;
        body = body.get(end + 2..)?;
        if size == 0 {
            return Some(whole);
        }
        whole.extend_from_slice(body.get(..size)?);
        body = body.get(size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_understood() {
        let number: u32 = parse(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n42").unwrap();
        assert_eq!(number, 42);
        let number: u32 =
            parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n4\r\n1\r\n2\r\n0\r\n\r\n").unwrap();
        assert_eq!(number, 42);
        let refused = parse::<u32>(b"HTTP/1.1 404 Not Found\r\n\r\n{\"error\":\"no\"}");
        assert!(matches!(refused, Err(AskError::Refused(text)) if text == "no"));
        let late = parse::<u32>(b"HTTP/1.1 504 x\r\n\r\n{\"error\":\"late\"}");
        assert!(matches!(late, Err(AskError::TimedOut(text)) if text == "late"));
        for broken in [&b""[..], b"HTTP/1.1 200 OK\r\n\r\nxx", b"nonsense\r\n\r\n"] {
            assert!(matches!(parse::<u32>(broken), Err(AskError::Io(_))));
        }
    }
}
