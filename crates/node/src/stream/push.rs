//! A primary that dials its replicas, because they cannot reach it (docs/spec/stream.md, "Pushing").
//!
//! One task for each replica. While this process has the right to write it dials, makes itself known, and then answers on that connection what the replica asks,
//! by the code that answers on every other one ([`super::server`]). Without the right nothing is dialed, and what stands is closed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rhyolite_format::{Epoch, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;

use super::client::{Address, LinkError, dial};
use super::greeting::introduce;
use super::server::{Server, requests};
use super::tls::{self, ClientFiles};
use super::{HEARTBEAT, SILENCE_MAX};
use crate::config::cluster::Token;
use crate::status::StatusBoard;
use crate::{random, time};

/// Pauses before a replica is dialed again: each is between a half of it and the whole.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How often it is looked whether a node of a cluster is the primary.
const LOOK: Duration = Duration::from_millis(200);

/// A replica that is dialed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushReport {
    /// Its address.
    pub to: String,
    /// Whether it has taken this primary.
    pub connected: bool,
    /// Since when that is so.
    #[serde(with = "time::rfc3339")]
    pub since: Timestamp,
    /// Why it is not connected; `None` when it is, or when this process is not the primary.
    pub error: Option<String>,
}

/// The place of a replica for the primary that dials it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptReport {
    /// Where it listens.
    pub listen: SocketAddr,
    /// From where the primary has dialed; `None` while none is connected.
    pub from: Option<SocketAddr>,
    /// The right of the primary.
    pub epoch: Option<Epoch>,
    /// Since when it is connected.
    #[serde(with = "time::rfc3339::option")]
    pub since: Option<Timestamp>,
}

/// From where it is known whether this process is the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// A node of a cluster has the lease.
    OfNode,
    /// Some database is captured.
    OfDatabases,
}

/// Dials these replicas until the task is dropped.
pub async fn push(server: Arc<Server>, to: Vec<Address>, token: Option<Token>, files: ClientFiles, right: Right) {
    let (sender, epoch) = watch::channel(None);
    let id = random::bytes();
    let mut tasks = tokio::task::JoinSet::new();
    for address in to {
        let (server, token, files, epoch) = (Arc::clone(&server), token.clone(), files.clone(), epoch.clone());
        tasks.spawn(Push { server, address, token, files, epoch, right, id }.run());
    }
    loop {
        let now = match right {
            Right::OfNode => of_node(server.board()),
            Right::OfDatabases => server.highest_epoch(),
        };
        sender.send_if_modified(|epoch| std::mem::replace(epoch, now) != now);
        tokio::time::sleep(if right == Right::OfNode { LOOK } else { HEARTBEAT }).await;
    }
}

/// The right of the node's lease, for as long as something is captured under it.
fn of_node(board: &StatusBoard) -> Option<Epoch> {
    board.look_at_node(|node| {
        use rhyolite_logic::role::Role::{Demoting, Primary};
        let captures = node.is(Primary) || node.is(Demoting);
        node.holder.as_ref().filter(|holder| captures && holder.is_self).and_then(|holder| holder.epoch)
    })?
}

/// One replica.
struct Push {
    server: Arc<Server>,
    address: Address,
    token: Option<Token>,
    files: ClientFiles,
    epoch: watch::Receiver<Option<Epoch>>,
    right: Right,
    id: [u8; 16],
}

impl Push {
    async fn run(mut self) {
        let mut pause = PAUSE.0;
        self.note(false, None);
        loop {
            let Ok(epoch) = self.epoch.wait_for(Option::is_some).await.map(|epoch| *epoch) else { return };
            let epoch = epoch.expect("waited for");
            let mut changes = self.epoch.clone();
            let right = self.right;
            let began = Instant::now();
            let ended = tokio::select! {
                biased;
                () = is_over(&mut changes, epoch, right) => None,
                ended = self.once(epoch) => Some(ended),
            };
            let Some(text) = ended else {
                tracing::info!("{}: not pushed to any more under the right {epoch}", self.address);
                self.note(false, None);
                continue;
            };
            self.note(false, Some(text));
            if began.elapsed() > HEARTBEAT + PAUSE.0 {
                pause = PAUSE.0;
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// One connection until it ends, and why.
    async fn once(&self, epoch: Epoch) -> String {
        let dialed = tokio::time::timeout(SILENCE_MAX, self.dial(epoch)).await;
        let dialed = dialed.unwrap_or_else(|_| Err(format!("no answer within {SILENCE_MAX:?}")));
        let served = match dialed {
            Ok(stream) => {
                self.note(true, None);
                requests(&self.server, stream, true).await
            }
            Err(text) => return text,
        };
        match served {
            Ok(()) => "the replica has closed the connection".to_owned(),
            Err(text) => format!("the connection was lost: {text}"),
        }
    }

    async fn dial(&self, epoch: Epoch) -> Result<Box<dyn Stream>, String> {
        let stream = dial(&self.address).await.map_err(|e| match e {
            LinkError::NotLoopback(text) => text,
            other => other.to_string(),
        })?;
        let mut stream: Box<dyn Stream> = if self.address.is_secret() {
            Box::new(tls::connect_to_push(&self.files, self.address.host(), stream).await?)
        } else {
            Box::new(stream)
        };
        introduce(&mut stream, self.token.as_ref(), self.id, epoch).await?;
        Ok(stream)
    }

    /// Lets everybody know, and logs it when it is something else than before.
    fn note(&self, connected: bool, error: Option<String>) {
        let to = self.address.to_string();
        let report = PushReport { to, connected, since: time::now(), error };
        let Some(report) = self.server.board().set_push(report) else { return };
        match &report.error {
            None if report.connected => tracing::info!("pushing to {}", report.to),
            None => {}
            Some(text) => tracing::warn!("cannot push to {}: {text}; trying again", report.to),
        }
    }
}

/// What is spoken on.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Ends when the connection is to be closed that was made under this right.
async fn is_over(changes: &mut watch::Receiver<Option<Epoch>>, epoch: Epoch, right: Right) {
    // Databases begin one after the other, each under a right of its own: a higher one among them is no other primary.
    let is_another = |now: &Option<Epoch>| match right {
        Right::OfNode => *now != Some(epoch),
        Right::OfDatabases => now.is_none(),
    };
    if changes.wait_for(is_another).await.is_err() {
        // The sender goes with the process.
        std::future::pending::<()>().await;
    }
}

/// Somewhere between a half of it and the whole.
fn jittered(pause: Duration) -> Duration {
    let part = f64::from(u32::from_be_bytes(random::bytes())) / f64::from(u32::MAX);
    pause.mul_f64(0.5 + part / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_bounded() {
        for _ in 0..1000 {
            let pause = jittered(PAUSE.1);
            assert!(pause >= PAUSE.1 / 2 && pause <= PAUSE.1, "{pause:?}");
        }
    }

    #[tokio::test]
    async fn a_right_is_over_when_it_is_gone_or_a_nodes_when_it_is_another() {
        let epoch = |n| Epoch::new(n).unwrap();
        for (right, next, is_expected) in [
            (Right::OfNode, Some(epoch(4)), true),
            (Right::OfNode, None, true),
            (Right::OfDatabases, Some(epoch(4)), false),
            (Right::OfDatabases, None, true),
        ] {
            let (sender, mut receiver) = watch::channel(Some(epoch(3)));
            sender.send_replace(next);
            let over = tokio::time::timeout(Duration::from_millis(20), is_over(&mut receiver, epoch(3), right)).await;
            assert_eq!(over.is_ok(), is_expected, "{right:?} {next:?}");
        }
    }
}
