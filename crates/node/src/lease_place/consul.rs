//! A key of Consul. Reads ask the leader (`consistent`); swaps are transactions of one `cas`, whose answer tells the new `ModifyIndex`.
//!
//! Consul compares nothing but the index, and one that was wiped or put back counts through the same numbers again. A swap therefore reads first,
//! and goes on only when the record is the very one that its caller has read.

use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use reqwest::header::{HeaderName, HeaderValue};
use rhyolite_format::lease::LeaseRecord;
use rhyolite_store::{Environment, Operation, StoreError, StoreErrorKind as Kind, Version};
use rhyolite_writer::lease_place::{LeasePlace, decode};
use serde_json::json;

use super::LeaseUrl;
use super::http::{Service, secret, version};

const PORT: u16 = 8500;
/// As Consul's own programs have it.
const TOKEN: &str = "CONSUL_HTTP_TOKEN";
/// Stands in every answer to a read. Without it nobody has looked for the key: a load balancer has no server, or does not know the path.
const INDEX: &str = "x-consul-index";

#[derive(Debug)]
pub(super) struct Consul {
    service: Service,
    key: String,
    /// The token, if there is one.
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Consul {
    pub(super) fn new(lease: &LeaseUrl, environment: &Environment, limit: Duration) -> Result<Self, StoreError> {
        let token = environment.get(TOKEN).map(|token| secret(lease, &token)).transpose()?;
        let service = Service::at(lease, PORT, limit)?;
        if token.is_some() {
            service.warn_of_readers("the token of CONSUL_HTTP_TOKEN");
        }
        let headers = token.map(|token| (HeaderName::from_static("x-consul-token"), token)).into_iter().collect();
        Ok(Self { service, key: lease.path().to_owned(), headers })
    }

    /// The record, its index, and the version that both make.
    async fn look(&self) -> Result<Option<(LeaseRecord, u64, Version)>, StoreError> {
        let path = format!("/v1/kv/{}?consistent", self.key);
        // Nothing is written by it, also where it is part of a swap.
        let answer = self.service.send(Operation::Get, Method::GET, &path, &self.headers, None).await?;
        match answer.status {
            200 => {}
            404 if answer.headers.contains_key(INDEX) && answer.text.is_empty() => return Ok(None),
            404 => {
                let text = "it is not Consul that answers, but something in between (status 404)";
                return Err(self.service.error(Kind::Unavailable, Operation::Get, text));
            }
            _ => return Err(self.service.refusal(Operation::Get, &answer)),
        }
        let found = &answer.body[0];
        let value = found["Value"].as_str().and_then(|value| STANDARD.decode(value).ok());
        let (Some(index), Some(value)) = (found["ModifyIndex"].as_u64(), value) else {
            return Err(self.service.nonsense(Operation::Get));
        };
        let record = decode(&value, "", &self.service.place)?;
        let version = version(&index.to_string(), record.nonce);
        Ok(Some((record, index, version)))
    }

    async fn try_swap(&self, expected: Option<&Version>, record: &LeaseRecord) -> Result<Version, StoreError> {
        let index = match expected {
            None => 0,
            Some(expected) => match self.look().await? {
                Some((_, index, version)) if version == *expected => index,
                _ => return Err(self.service.conflict()),
            },
        };
        let value = STANDARD.encode(record.encode());
        let body = json!([{"KV": {"Verb": "cas", "Key": self.key, "Value": value, "Index": index}}]);
        let answer = self.service.send(Operation::Swap, Method::PUT, "/v1/txn", &self.headers, Some(body)).await?;
        if answer.status == 409 {
            let what = answer.body["Errors"][0]["What"].as_str().unwrap_or_default();
            // The one status has several reasons.
            return Err(if what.contains("index is stale") {
                self.service.conflict()
            } else {
                let kind = if what.contains("ermission denied") { Kind::Denied } else { Kind::Invalid };
                self.service.error(kind, Operation::Swap, format!("Consul refuses it: {what}"))
            });
        }
        if answer.status != 200 {
            return Err(self.service.refusal(Operation::Swap, &answer));
        }
        let index = answer.body["Results"][0]["KV"]["ModifyIndex"].as_u64();
        let index = index.ok_or_else(|| self.service.nonsense(Operation::Swap))?;
        Ok(version(&index.to_string(), record.nonce))
    }
}

#[async_trait]
impl LeasePlace for Consul {
    fn describe(&self) -> String {
        self.service.place.clone()
    }

    async fn read(&self) -> Result<Option<(LeaseRecord, Version)>, StoreError> {
        let found = self.service.within(Operation::Get, self.look()).await?;
        Ok(found.map(|(record, _, version)| (record, version)))
    }

    async fn swap(&self, expected: Option<&Version>, record: &LeaseRecord) -> Result<Version, StoreError> {
        self.service.within(Operation::Swap, self.try_swap(expected, record)).await
    }
}
