//! A proxy that knows enough of HTTP to misbehave at the right moment: after the server has applied a request, before it has
//! seen it, or in the middle of an answer. One connection per request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// The server applies it; the connection closes without an answer.
    DropReply,
    /// The server applies it; the answer is this status.
    AnswerAfter(u16),
    /// The server never sees it; the answer is this status.
    AnswerBefore(u16),
    /// The server never sees it; the answer is 200 with an ETag.
    Pretend,
    /// The server applies it; this many bytes of the answer's body come, then the connection closes.
    Truncate(usize),
    /// The server never sees it; no answer, ever.
    Hang,
    /// The server applies it; this many bytes of the answer's body come, then silence.
    HangInBody(usize),
}

#[derive(Debug)]
struct Rule {
    method: &'static str,
    target_contains: String,
    times: usize,
    act: Act,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    counts: BTreeMap<String, usize>,
}

#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    pub(crate) async fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // A connection that breaks is what the proxy is for.
                tokio::spawn(serve(client, upstream, Arc::clone(&shared)));
            }
        });
        Self { port, state, task }
    }

    /// Spoils the next `times` requests with this method whose target contains the text.
    pub(crate) fn script(&self, method: &'static str, target_contains: &str, times: usize, act: Act) {
        let rule = Rule { method, target_contains: target_contains.to_owned(), times, act };
        self.state.lock().unwrap().rules.push(rule);
    }

    /// Requests by method since the last call.
    pub(crate) fn take_counts(&self) -> BTreeMap<String, usize> {
        std::mem::take(&mut self.state.lock().unwrap().counts)
    }
}

impl State {
    fn act(&mut self, method: &str, target: &str) -> Option<Act> {
        *self.counts.entry(method.to_owned()).or_default() += 1;
        let hit = |r: &&mut Rule| r.times > 0 && r.method == method && target.contains(&r.target_contains);
        let rule = self.rules.iter_mut().find(hit)?;
        rule.times -= 1;
        Some(rule.act)
    }
}

async fn serve(mut client: TcpStream, upstream: u16, state: Arc<Mutex<State>>) -> Option<()> {
    let (head, body) = read_request(&mut client).await?;
    let mut words = head.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let act = state.lock().unwrap().act(&method, &target);
    match act {
        Some(Act::Hang) => std::future::pending().await,
        Some(Act::AnswerBefore(status)) => return answer(&mut client, status).await,
        Some(Act::Pretend) => {
            let text = "HTTP/1.1 200 OK\r\nETag: \"pretended\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            return client.write_all(text.as_bytes()).await.ok();
        }
        _ => {}
    }
    let reply = forward(upstream, &head, &body).await?;
    let body_at = reply.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    match act {
        Some(Act::DropReply) => None,
        Some(Act::AnswerAfter(status)) => answer(&mut client, status).await,
        Some(Act::Truncate(keep)) => client.write_all(&reply[..reply.len().min(body_at + keep)]).await.ok(),
        Some(Act::HangInBody(keep)) => {
            client.write_all(&reply[..reply.len().min(body_at + keep)]).await.ok()?;
            std::future::pending().await
        }
        _ => client.write_all(&reply).await.ok(),
    }
}

async fn answer(client: &mut TcpStream, status: u16) -> Option<()> {
    let body = "<Error><Code>Injected</Code><Message>by the proxy</Message></Error>";
    let len = body.len();
    let text = format!("HTTP/1.1 {status} Injected\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}");
    client.write_all(text.as_bytes()).await.ok()
}

/// Head (without the empty line) and body. Only bodies with a length: the client under test sends no others.
async fn read_request(client: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        if client.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
    let mut body = bytes.split_off(end + 4);
    let length = head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    let length: usize = length.unwrap_or(0);
    while body.len() < length {
        if client.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some((head, body))
}

/// Everything that the server answers, head and body.
async fn forward(upstream: u16, head: &str, body: &[u8]) -> Option<Vec<u8>> {
    let mut server = TcpStream::connect(("127.0.0.1", upstream)).await.ok()?;
    let lines = head.split("\r\n").filter(|l| !l.to_ascii_lowercase().starts_with("connection:"));
    let head: Vec<&str> = lines.collect();
    server.write_all(format!("{}\r\nConnection: close\r\n\r\n", head.join("\r\n")).as_bytes()).await.ok()?;
    server.write_all(body).await.ok()?;
    let mut reply = Vec::new();
    server.read_to_end(&mut reply).await.ok()?;
    Some(reply)
}
