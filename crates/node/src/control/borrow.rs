//! Write locks that are borrowed from the primary, by requests ([`crate::forward`]).

use std::path::PathBuf;
use std::time::Duration;

use axum::extract::State as Shared;
use axum::response::Json;
use serde::{Deserialize, Serialize};

use super::{Controller, Refused, no_node, refuse};
use crate::forward::borrow::{Borrowed, Committed, Here};

/// How long a lock is waited for, unless the request says so.
const WAIT: Duration = Duration::from_secs(30);

/// What such a request may say.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Write {
    /// Path of the database, for a lock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// That of a lock that is borrowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// For how long it is borrowed, unless it is asked for again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// How long it is waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

impl Write {
    fn id(&self) -> Result<&str, Refused> {
        self.id.as_deref().ok_or_else(|| refuse(axum::http::StatusCode::BAD_REQUEST, "`id` is missing"))
    }
}

fn here(controller: &Controller) -> Result<Here<'_>, Refused> {
    Ok(Here { node: controller.node.as_ref().ok_or_else(no_node)?, board: &controller.board })
}

pub(super) async fn lock(
    Shared(controller): Shared<Controller>,
    Json(wanted): Json<Write>,
) -> Result<Json<Borrowed>, Refused> {
    let here = here(&controller)?;
    let ttl = wanted.ttl_ms.map(Duration::from_millis);
    let wait = wanted.timeout_ms.map_or(WAIT, Duration::from_millis);
    let done = match (&wanted.path, &wanted.id) {
        (Some(path), None) => here.borrow(path, ttl, wait).await,
        (None, Some(id)) => here.keep(id, ttl).await,
        _ => return Err(refuse(axum::http::StatusCode::BAD_REQUEST, "either `path` or `id`")),
    };
    done.map(Json).map_err(|(status, text)| refuse(status, text))
}

pub(super) async fn commit(
    Shared(controller): Shared<Controller>,
    Json(wanted): Json<Write>,
) -> Result<Json<Committed>, Refused> {
    let id = wanted.id()?.to_owned();
    here(&controller)?;
    // Whoever has asked may go away: it is ended all the same, and remembered.
    let committing = tokio::spawn(async move {
        match here(&controller) {
            Ok(here) => Ok(here.commit(&id).await),
            Err(refused) => Err(refused),
        }
    });
    let done = committing.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))?;
    done.map(Json).map_err(|(status, text)| refuse(status, text))
}

pub(super) async fn unlock(
    Shared(controller): Shared<Controller>,
    Json(wanted): Json<Write>,
) -> Result<Json<()>, Refused> {
    here(&controller)?.give_back(wanted.id()?).await;
    Ok(Json(()))
}
