//! Answers to writes that are held until what they have committed is where the operator, or the client, wants it ([`crate::durability`]).
//!
//! Whoever gets the application's answer knows that it is there. Whoever does not is told by an error of the proxy where it is: the application has answered, so
//! the write is not simply to be repeated.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::Either;
use rhyolite_format::Txid;
use rhyolite_logic::proxy::{Side, UNKNOWN};
use tokio::time::Instant;

use super::exchange::{Answer, own};
use super::flight::Flying;
use super::{CAPTURE_MAX, COOKIE, COOKIE_AGE_S, LOOK, Proxy, UNKNOWN_AGE_S};
use crate::capture::thread::Upload;
use crate::durability::{Level, NotSafe};
use crate::status::DatabaseStatus;

/// In a request: where the commits of this write must be before it is answered. In an answer: where they are.
pub(super) const HEADER: &str = "rhyolite-durability";

/// What a proxy is told about answers to writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    /// Where the commits of a write must be, unless its client says otherwise.
    pub level: Level,
    /// The least that a client may say.
    pub least: Level,
    /// How long an answer is held for that; then it is an error.
    pub timeout: Duration,
}

impl Durable {
    /// What holds for a request with these headers.
    fn of(&self, headers: &HeaderMap) -> Result<Level, String> {
        let said = headers.get_all(HEADER).into_iter().map(|value| {
            let text = value.to_str().map_err(|_| format!("{HEADER} is no text"))?;
            Level::parse(text.trim()).map_err(|text| format!("{HEADER}: {text}"))
        });
        let said: Result<Vec<Level>, String> = said.collect();
        Ok(said?.into_iter().max().unwrap_or(self.level).max(self.least))
    }
}

impl Proxy {
    /// Where the commits of a write must be that is about to go to the application beside the proxy.
    pub(super) fn level(&self, headers: &HeaderMap) -> Result<Level, (StatusCode, String)> {
        let level = self.config.durable.of(headers).and_then(|level| self.waits.check(level).map(|()| level));
        let level = level.map_err(|text| (StatusCode::BAD_REQUEST, text))?;
        if level > Level::Local && self.config.database.is_none() && self.paths().len() > 1 {
            let text = format!(
                "there are several databases: nobody can wait for `{level}` until --proxy-db says whose commits count"
            );
            return Err((StatusCode::SERVICE_UNAVAILABLE, text));
        }
        Ok(level)
    }

    /// The application's answer to a write, when what it has committed is at `level`; otherwise an error.
    pub(super) async fn held(&self, mut answer: Answer, level: Level, flying: Flying) -> Answer {
        let until = Instant::now() + if level == Level::Local { CAPTURE_MAX } else { self.config.durable.timeout };
        let captured = self.captured(level, until).await;
        // Whoever ends the application has waited for that, and capture ends later.
        drop(flying);
        let txid = captured.as_ref().ok().map(|(_, txid)| *txid);
        if level > Level::Local {
            let safe = match captured {
                Ok((status, txid)) => {
                    let limit = (until, self.config.durable.timeout);
                    self.waits.wait_until(&status, (txid, level), limit).await
                }
                Err(error) => Err(error),
            };
            let holds = match &safe {
                Ok(reached) | Err(NotSafe::Late(_, Some(reached))) => reached.holds,
                Err(_) => None,
            };
            if let Err(error) = safe {
                answer = self.not_safe(&error, level);
            }
            let holds = HeaderValue::from_static(holds.map_or("unknown", Level::name));
            answer.headers_mut().insert(HEADER, holds);
        }
        let (txid, age) = txid.map_or((UNKNOWN, UNKNOWN_AGE_S), |txid| (txid, COOKIE_AGE_S));
        let cookie = format!("{COOKIE}={txid}; Path=/; Max-Age={age}; HttpOnly");
        let cookie = HeaderValue::from_str(&cookie).expect("digits and ASCII");
        answer.headers_mut().append(header::SET_COOKIE, cookie);
        answer
    }

    /// The position after everything that was committed so far. A database that was just made may not be known yet.
    async fn captured(&self, level: Level, until: Instant) -> Result<(Arc<DatabaseStatus>, Txid), NotSafe> {
        let upload = if level == Level::Store { Upload::Now } else { Upload::InTurn };
        let late = || NotSafe::Late("not known to be captured so far".to_owned(), None);
        loop {
            let unknown = match self.path() {
                Some(path) => {
                    let captured = tokio::time::timeout_at(until, self.waits.captured(&path, upload)).await;
                    match captured.map_err(|_| late())? {
                        Err(NotSafe::Unknown(text)) => NotSafe::Unknown(text),
                        other => return other,
                    }
                }
                None => NotSafe::Unknown("no database is captured here".to_owned()),
            };
            if Instant::now() >= until || self.side() != Side::Primary || level == Level::Local {
                return Err(unknown);
            }
            tokio::time::sleep(LOOK.1).await;
        }
    }

    fn path(&self) -> Option<PathBuf> {
        Some(self.config.dir.join(self.database()?))
    }

    /// What is answered in place of the application.
    fn not_safe(&self, error: &NotSafe, level: Level) -> Answer {
        let timeout = self.config.durable.timeout;
        let mut json = error.json();
        json["error"] = format!(
            "the application has answered, and nobody knows within {timeout:?} whether what it has committed is at `{level}`: {error}"
        )
        .into();
        json["level"] = level.name().into();
        let mut answer = own(StatusCode::GATEWAY_TIMEOUT, "");
        *answer.body_mut() = Either::Right(bytes::Bytes::from(format!("{json}\n")).into());
        let kind = HeaderValue::from_static("application/json");
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_ask_for_more_and_for_less_only_as_far_as_it_is_let() {
        let durable = |level, least| Durable { level, least, timeout: Duration::from_secs(1) };
        let of = |durable: Durable, said: &[&str]| {
            let mut headers = HeaderMap::new();
            for said in said {
                headers.append(HEADER, HeaderValue::from_str(said).unwrap());
            }
            durable.of(&headers).map(Level::name)
        };
        let strict = durable(Level::Replica, Level::Replica);
        assert_eq!(of(strict, &[]), Ok("replica"));
        assert_eq!(of(strict, &["quorum"]), Ok("quorum"));
        assert_eq!(of(strict, &[" store "]), Ok("store"));
        assert_eq!(of(strict, &["local"]), Ok("replica"));
        assert_eq!(of(strict, &["local", "quorum"]), Ok("quorum"));
        let lax = durable(Level::Quorum, Level::Local);
        assert_eq!((of(lax, &[]), of(lax, &["local"])), (Ok("quorum"), Ok("local")));
        assert!(of(lax, &["all"]).unwrap_err().contains("rhyolite-durability: \"all\" is no level"));
        assert!(of(lax, &["local", ""]).is_err());
    }
}
