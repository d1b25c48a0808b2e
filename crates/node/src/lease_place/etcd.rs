//! A key of etcd 3.4 or later, by the JSON gateway that every server has: no gRPC. Reads are linearizable, which is etcd's default.
//!
//! A swap is a transaction that compares the key's `mod_revision` and its value. The revision alone would not do: an etcd that was wiped or put
//! back counts through the same numbers again. The value holds a nonce, so equal ones are one writing.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use rhyolite_format::lease::LeaseRecord;
use rhyolite_store::{Environment, Operation, StoreError, StoreErrorKind as Kind, Version};
use rhyolite_writer::lease_place::{LeasePlace, decode};
use serde_json::{Value, json};

use super::LeaseUrl;
use super::http::{Answer, Service, secret};

const PORT: u16 = 2379;
/// As etcd's own program has them: `USER`, or `USER:PASSWORD`; and the password alone.
const USER: &str = "ETCDCTL_USER";
const PASSWORD: &str = "ETCDCTL_PASSWORD";

pub(super) struct Etcd {
    service: Service,
    lease: LeaseUrl,
    /// In base64.
    key: String,
    account: Option<Account>,
}

/// Who we are, and the token that we have got for it.
struct Account {
    user: String,
    password: String,
    token: Mutex<Option<HeaderValue>>,
}

impl std::fmt::Debug for Etcd {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd").field("service", &self.service).finish_non_exhaustive()
    }
}

impl Etcd {
    pub(super) fn new(lease: &LeaseUrl, environment: &Environment, limit: Duration) -> Result<Self, StoreError> {
        let account = environment.get(USER).map(|user| {
            let (name, inline) = user.split_once(':').map_or((user.as_str(), None), |(n, p)| (n, Some(p.to_owned())));
            let password = inline.or_else(|| environment.get(PASSWORD)).unwrap_or_default();
            Account { user: name.to_owned(), password, token: Mutex::default() }
        });
        let key = STANDARD.encode(lease.path());
        let service = Service::at(lease, PORT, limit)?;
        if account.is_some() {
            service.warn_of_readers("the password of ETCDCTL_USER");
        }
        Ok(Self { service, lease: lease.clone(), key, account })
    }

    /// Sends a request as who we are. A token that is refused is forgotten: the next request gets another one.
    async fn ask(&self, operation: Operation, path: &str, body: Value) -> Result<Value, StoreError> {
        let token = self.token().await?;
        let headers: Vec<(HeaderName, HeaderValue)> = token.map(|token| (AUTHORIZATION, token)).into_iter().collect();
        let answer = self.service.send(operation, Method::POST, path, &headers, Some(body)).await?;
        if answer.status == 200 {
            return Ok(answer.body);
        }
        if let Some(account) = &self.account {
            *account.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        Err(self.refusal(operation, &answer))
    }

    async fn token(&self) -> Result<Option<HeaderValue>, StoreError> {
        let Some(account) = &self.account else { return Ok(None) };
        let known = account.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known.is_some() {
            return Ok(known);
        }
        let body = json!({"name": account.user, "password": account.password});
        let answer = self.service.send(Operation::Get, Method::POST, "/v3/auth/authenticate", &[], Some(body)).await?;
        if answer.status != 200 {
            return Err(self.refusal(Operation::Get, &answer));
        }
        let token = answer.body["token"].as_str().ok_or_else(|| self.service.nonsense(Operation::Get))?;
        let token = secret(&self.lease, token)?;
        *account.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
        Ok(Some(token))
    }

    /// etcd says 400 also of credentials that are wrong or missing.
    fn refusal(&self, operation: Operation, answer: &Answer) -> StoreError {
        let error = self.service.refusal(operation, answer);
        let words = answer.body["error"].as_str().unwrap_or_default();
        let is_about_access = ["user name", "auth", "permission"].iter().any(|word| words.contains(word));
        if answer.status == 400 && is_about_access { StoreError { kind: Kind::Denied, ..error } } else { error }
    }

    async fn look(&self) -> Result<Option<(LeaseRecord, Version)>, StoreError> {
        let answer = self.ask(Operation::Get, "/v3/kv/range", json!({"key": self.key})).await?;
        if !answer["header"].is_object() {
            return Err(self.service.nonsense(Operation::Get));
        }
        let Some(found) = answer["kvs"].get(0) else { return Ok(None) };
        let (Some(revision), Some(value)) = (found["mod_revision"].as_str(), found["value"].as_str()) else {
            return Err(self.service.nonsense(Operation::Get));
        };
        let bytes = STANDARD.decode(value).map_err(|_| self.service.nonsense(Operation::Get))?;
        Ok(Some((decode(&bytes, "", &self.service.place)?, version(revision, value))))
    }

    async fn try_swap(&self, expected: Option<&Version>, record: &LeaseRecord) -> Result<Version, StoreError> {
        let key = &self.key;
        let compare = match expected.map(|version| version.as_str().split_once(' ').expect("made by `version`")) {
            None => json!([{"key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0"}]),
            Some((revision, value)) => json!([
                {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": revision},
                {"key": key, "target": "VALUE", "result": "EQUAL", "value": value},
            ]),
        };
        let value = STANDARD.encode(record.encode());
        let put = json!([{"request_put": {"key": key, "value": value}}]);
        let answer = self.ask(Operation::Swap, "/v3/kv/txn", json!({"compare": compare, "success": put})).await?;
        let revision = answer["header"]["revision"].as_str();
        let revision = revision.ok_or_else(|| self.service.nonsense(Operation::Swap))?;
        // What is false is left out.
        if answer["succeeded"].as_bool() != Some(true) {
            return Err(self.service.conflict());
        }
        Ok(version(revision, &value))
    }
}

/// Revision and value, in base64.
fn version(revision: &str, value: &str) -> Version {
    Version::new(format!("{revision} {value}"))
}

#[async_trait]
impl LeasePlace for Etcd {
    fn describe(&self) -> String {
        self.service.place.clone()
    }

    async fn read(&self) -> Result<Option<(LeaseRecord, Version)>, StoreError> {
        self.service.within(Operation::Get, self.look()).await
    }

    async fn swap(&self, expected: Option<&Version>, record: &LeaseRecord) -> Result<Version, StoreError> {
        self.service.within(Operation::Swap, self.try_swap(expected, record)).await
    }
}
