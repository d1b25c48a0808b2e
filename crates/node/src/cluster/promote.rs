//! Makes this node the primary because somebody asks for it: whoever is the primary hands its role on, to this one.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rhyolite_logic::role::Role;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::report::NodeReport;
use super::witness::Durability;
use super::{Handoff, node_address};
use crate::config::folder::FolderConfig;
use crate::forward::borrow::Borrows;
use crate::status::StatusBoard;
use crate::stream::accept::Accepting;
use crate::stream::client::{Access, Link};
use crate::stream::query::Query;

/// Time between two looks at the role.
const LOOK: Duration = Duration::from_millis(20);
/// Pause before a primary is asked again that did not hand its role on.
const AGAIN: Duration = Duration::from_millis(250);
/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// What others need to change the role of this node.
#[derive(Clone)]
pub struct NodeControl {
    /// Takes requests to hand the role on.
    pub handoffs: mpsc::Sender<Handoff>,
    /// The databases.
    pub folder: FolderConfig,
    /// What nodes show each other.
    pub access: Access,
    /// How long a change of roles is given before it is asked for again.
    pub patience: Duration,
    /// Whose commits are called safe before they are in the store.
    pub durability: Durability,
    /// Turns true when commits that were acknowledged and cannot be found are given up.
    pub forgets: watch::Sender<bool>,
    /// The primary is not dialed, but dials and has this place.
    pub accepting: Option<Arc<Accepting>>,
    /// Write locks of the primary that are borrowed.
    pub borrows: Arc<Borrows>,
}

impl fmt::Debug for NodeControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeControl").finish_non_exhaustive()
    }
}

/// Where the holder of the lease is reached, if that is another node.
pub(crate) fn holder_of(node: &NodeReport) -> Option<String> {
    node.holder.as_ref().filter(|holder| !holder.is_self)?.address.clone()
}

/// Ends when this node is the primary.
///
/// # Errors
/// It must not become it, or has not within `limit`: one line.
pub async fn promote(control: &NodeControl, board: &StatusBoard, limit: Duration) -> Result<(), String> {
    let deadline = Instant::now() + limit;
    let patience = control.patience.min(limit / 4);
    let (mut why, mut ask_at) = ("nobody holds the lease".to_owned(), Instant::now());
    loop {
        let node = board.node().ok_or("this process is no node of a cluster")?;
        if node.is(Role::Primary) {
            return Ok(());
        }
        if !node.candidate {
            return Err("this node is no candidate: it never becomes the primary (--candidate)".to_owned());
        }
        if Instant::now() >= deadline {
            return Err(format!("this node is {} after {limit:?}: {why}", node.role));
        }
        let holder = holder_of(&node);
        if let Some(holder) = holder.filter(|_| Instant::now() >= ask_at) {
            let answer = tokio::time::timeout_at(deadline, ask(&holder, &node.address, &control.access)).await;
            let is_heard = matches!(answer, Ok(Ok(())));
            why = match answer {
                Ok(Ok(())) => format!("{holder} hands its role on"),
                Ok(Err(text)) => format!("{holder}: {text}"),
                Err(_) => format!("{holder} does not answer"),
            };
            // Who has heard us needs time, and so has the next one, if another was faster.
            ask_at = Instant::now() + if is_heard { patience } else { AGAIN };
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Asks the primary at `holder` to hand its role on to `own`.
async fn ask(holder: &str, own: &str, access: &Access) -> Result<(), String> {
    let address = node_address(holder)?;
    let link = Link::connect(&address, access, ANSWER_MAX).await.map_err(|e| e.to_string())?;
    let path = Query::default().with("to", own).of("/v1/handoff");
    let asked = tokio::time::timeout(ANSWER_MAX, link.post(&path)).await;
    link.close();
    asked.map_err(|_| "it does not answer".to_owned())?.map_err(|e| e.to_string())
}
