//! Where the primary's proxy is: its node says so, at the address that the lease names.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::stream::client::{Access, Address, Link};

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long an answer is good.
const GOOD: Duration = Duration::from_secs(5);
/// Bytes of an answer.
const BYTES_MAX: u64 = 64 << 10;

/// What a node says of itself (docs/spec/stream.md, `/v1/node`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Where its proxy is, HOST:PORT; `None` when it has none.
    pub proxy: Option<String>,
}

/// What was said last.
#[derive(Debug)]
struct Said {
    node: String,
    at: Instant,
    proxy: String,
}

/// Knows where the primary's proxy is.
#[derive(Debug)]
pub(super) struct Primary {
    access: Access,
    said: Mutex<Option<Said>>,
}

impl Primary {
    pub(super) fn new(access: Access) -> Self {
        Self { access, said: Mutex::new(None) }
    }

    /// The proxy of the node at `node`; the error is why there is none to be asked.
    pub(super) async fn proxy_of(&self, node: &str) -> Result<String, String> {
        if let Some(said) = &*self.said.lock().unwrap_or_else(PoisonError::into_inner)
            && said.node == node
            && said.at.elapsed() < GOOD
        {
            return Ok(said.proxy.clone());
        }
        let proxy = self.ask(node).await?;
        let said = Said { node: node.to_owned(), at: Instant::now(), proxy: proxy.clone() };
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
        Ok(proxy)
    }

    async fn ask(&self, node: &str) -> Result<String, String> {
        let url = if node.contains("://") { node.to_owned() } else { format!("http://{node}") };
        let address: Address = url.parse()?;
        let link = Link::connect(&address, &self.access, ANSWER_MAX).await.map_err(|e| format!("{node}: {e}"))?;
        let read = tokio::time::timeout(ANSWER_MAX, link.read("/v1/node", BYTES_MAX)).await;
        link.close();
        let (_, bytes) = read.map_err(|_| format!("{node} does not answer"))?.map_err(|e| format!("{node}: {e}"))?;
        let about: About = serde_json::from_slice(&bytes).map_err(|e| format!("{node}: {e}"))?;
        about.proxy.ok_or_else(|| format!("the primary {node} has no proxy"))
    }
}
