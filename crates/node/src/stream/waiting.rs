//! `/v1/wait`: an application asks its node to say when commits are where it wants them ([`crate::durability`]).

use std::time::Duration;

use http::StatusCode;
use rhyolite_logic::role::Role;
use serde_json::{Value, json};

use super::query::Query;
use super::server::Server;
use crate::cli::when::parse_txid;
use crate::config::units::{format_duration, parse_duration};
use crate::durability::Level;

/// Its path.
pub(super) const WAIT: &str = "/v1/wait";
/// What a request may say.
const NAMES: [&str; 4] = ["db", "txid", "level", "timeout"];
/// How long is waited unless the request says so, and at most.
const TIMEOUT: Duration = Duration::from_secs(30);
const TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// What a request wants beside the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    txid: Option<rhyolite_format::Txid>,
    level: Level,
    timeout: Duration,
}

impl Wanted {
    fn parse(query: &Query) -> Result<Self, String> {
        if let Some(name) = query.names().find(|name| !NAMES.contains(name)) {
            return Err(format!("{name:?} is not known: write db, and txid, level or timeout"));
        }
        let timeout = query.find("timeout").map_or(Ok(TIMEOUT), parse_duration);
        let timeout = timeout.map_err(|text| format!("`timeout`: {text}"))?;
        if timeout > TIMEOUT_MAX {
            return Err(format!("`timeout` is more than {}", format_duration(TIMEOUT_MAX)));
        }
        Ok(Self {
            txid: query.find("txid").map(parse_txid).transpose().map_err(|text| format!("`txid`: {text}"))?,
            level: query.find("level").map_or(Ok(Level::default()), Level::parse)?,
            timeout,
        })
    }
}

impl Server {
    /// Status and JSON.
    pub(super) async fn wait(&self, query: &Query) -> (StatusCode, Value) {
        let error = |status, text: String| (status, json!({ "error": text }));
        let wanted = match Wanted::parse(query).and_then(|wanted| self.waits.check(wanted.level).map(|()| wanted)) {
            Ok(wanted) => wanted,
            Err(text) => return error(StatusCode::BAD_REQUEST, text),
        };
        if let Some(elsewhere) = self.elsewhere() {
            return elsewhere;
        }
        let (_, database) = match self.find(query) {
            Ok(found) => found,
            Err((status, text)) => return error(status, text),
        };
        let Wanted { txid, level, timeout } = wanted;
        match self.waits.wait(&database.path, txid, level, timeout).await {
            Ok(reached) => (StatusCode::OK, serde_json::to_value(reached).expect("numbers become JSON")),
            Err(not_safe) => (not_safe.status(), not_safe.json()),
        }
    }

    /// What is answered where another node has to be asked.
    fn elsewhere(&self) -> Option<(StatusCode, Value)> {
        let node = self.board.node()?;
        if node.is(Role::Primary) || node.is(Role::Demoting) {
            return None;
        }
        let holder = node.holder.filter(|holder| !holder.is_self);
        Some(match holder.and_then(|holder| holder.address) {
            Some(primary) => {
                let text = format!("this node is {}: ask the primary, {primary}", node.role);
                (StatusCode::MISDIRECTED_REQUEST, json!({ "error": text, "primary": primary }))
            }
            None => {
                let text = format!("this node is {}, and nobody is known to be the primary: ask again", node.role);
                (StatusCode::SERVICE_UNAVAILABLE, json!({ "error": text }))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_what_it_wants_and_nothing_that_has_no_effect() {
        let parse = |text| Wanted::parse(&Query::parse(text));
        let all = Wanted { txid: None, level: Level::Store, timeout: TIMEOUT };
        assert_eq!(parse("db=a"), Ok(all));
        let txid = rhyolite_format::Txid::new(26);
        let wanted = Wanted { txid, level: Level::Quorum, timeout: Duration::from_millis(1500) };
        assert_eq!(parse("db=a&txid=000000000000001a&level=quorum&timeout=1500ms"), Ok(wanted));
        assert_eq!(parse("db=a&txid=26").map(|wanted| wanted.txid), Ok(txid));
        for (text, error) in [
            ("db=a&levl=store", "\"levl\" is not known"),
            ("db=a&level=all", "\"all\" is no level"),
            ("db=a&txid=0", "`txid`"),
            ("db=a&timeout=soon", "`timeout`"),
            ("db=a&timeout=11m", "more than 10m"),
        ] {
            let refused = parse(text).unwrap_err();
            assert!(refused.contains(error), "{text}: {refused}");
        }
    }
}
