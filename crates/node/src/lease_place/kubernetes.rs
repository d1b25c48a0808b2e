//! A Lease object (`coordination.k8s.io/v1`) of the Kubernetes cluster in which this runs, as the pod's service account.
//!
//! The record lies in an annotation. What `kubectl get lease` shows is filled in beside it, truthfully and for people: holder, duration, time of the
//! last renewal, number of takings. Nobody's decision rests on that. An object that somebody has made without a record, to give rights on it, is
//! filled in; one that another program holds is refused.
//!
//! A swap reads the object, goes on only when its record is the very one that the caller has read, and replaces it under its `resourceVersion` and
//! `uid`. The version alone would not do: a cluster that is put back from a backup counts through the same numbers again.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use rhyolite_format::Timestamp;
use rhyolite_format::lease::{LeaseRecord, LeaseState};
use rhyolite_store::{Environment, Operation, StoreError, StoreErrorKind as Kind, Version};
use rhyolite_writer::lease_place::{LeasePlace, decode};
use serde_json::{Value, json};

use super::LeaseUrl;
use super::http::{Service, Tls, secret, version};

/// Where Kubernetes puts what a pod needs to speak with it.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Another folder of that kind: `token` and `ca.crt`.
const ACCOUNT_VARIABLE: &str = "RHYOLITE_KUBERNETES_ACCOUNT";
/// The address of the API, if it is not the one that every pod is told.
const URL_VARIABLE: &str = "RHYOLITE_KUBERNETES_URL";
/// Holds the record.
const ANNOTATION: &str = "rhyolite/lease";

#[derive(Debug)]
pub(super) struct Kubernetes {
    service: Service,
    lease: LeaseUrl,
    namespace: String,
    name: String,
    /// Read for each call: Kubernetes replaces what is in it.
    token: PathBuf,
}

impl Kubernetes {
    pub(super) fn new(lease: &LeaseUrl, environment: &Environment, limit: Duration) -> Result<Self, StoreError> {
        let account = PathBuf::from(environment.get(ACCOUNT_VARIABLE).unwrap_or_else(|| ACCOUNT.to_owned()));
        let base = match environment.get(URL_VARIABLE) {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => in_cluster(environment).ok_or_else(|| {
                lease.invalid(format!(
                    "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this is no pod; {URL_VARIABLE} names the API otherwise"
                ))
            })?,
        };
        let ca_path = account.join("ca.crt");
        let ca = match std::fs::read(&ca_path) {
            Ok(pem) => Some(pem),
            Err(_) if base.starts_with("http://") => None,
            Err(e) => return Err(lease.invalid(format!("read {}: {e}", ca_path.display()))),
        };
        let service = Service::new(lease, base, Tls { ca, ..Tls::default() }, limit)?;
        service.warn_of_readers("the token of the service account");
        let (namespace, name) = (lease.host().to_owned(), lease.path().to_owned());
        Ok(Self { service, lease: lease.clone(), namespace, name, token: account.join("token") })
    }

    /// Sends a request under the token as it is at this moment.
    async fn ask(
        &self,
        operation: Operation,
        method: Method,
        name: &str,
        body: Option<Value>,
    ) -> Result<super::http::Answer, StoreError> {
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases{name}", self.namespace);
        let token = tokio::fs::read_to_string(&self.token).await;
        let token = token.map_err(|e| {
            self.service.error(Kind::Denied, operation, format!("read the token {}: {e}", self.token.display()))
        })?;
        let headers: [(HeaderName, HeaderValue); 1] =
            [(AUTHORIZATION, secret(&self.lease, &format!("Bearer {}", token.trim()))?)];
        self.service.send(operation, method, &path, &headers, body).await
    }

    /// The object, as it is.
    async fn object(&self) -> Result<Option<Value>, StoreError> {
        let answer = self.ask(Operation::Get, Method::GET, &format!("/{}", self.name), None).await?;
        match answer.status {
            200 if answer.body["metadata"]["resourceVersion"].is_string() => Ok(Some(answer.body)),
            200 => Err(self.service.nonsense(Operation::Get)),
            404 if answer.body["reason"] == "NotFound" => Ok(None),
            _ => Err(self.service.refusal(Operation::Get, &answer)),
        }
    }

    /// The record in an object, if it has one, and its version.
    fn record(&self, object: &Value) -> Result<Option<(LeaseRecord, Version)>, StoreError> {
        let Some(text) = object["metadata"]["annotations"][ANNOTATION].as_str() else {
            return match object["spec"]["holderIdentity"].as_str() {
                None | Some("") => Ok(None),
                Some(holder) => {
                    let text =
                        format!("another program uses this object: it is held by {holder:?}, without a record of ours");
                    Err(self.service.error(Kind::Corrupt, Operation::Get, text))
                }
            };
        };
        let record = decode(text.as_bytes(), "", &self.service.place)?;
        let count = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let version = version(count, record.nonce);
        Ok(Some((record, version)))
    }

    async fn try_swap(&self, expected: Option<&Version>, record: &LeaseRecord) -> Result<Version, StoreError> {
        let found = self.object().await?;
        let there = found.as_ref().map(|object| self.record(object)).transpose()?.flatten();
        if there.as_ref().map(|(_, version)| version) != expected {
            return Err(self.service.conflict());
        }
        let (method, name) = match &found {
            Some(_) => (Method::PUT, format!("/{}", self.name)),
            None => (Method::POST, String::new()),
        };
        let object = filled(found.unwrap_or_else(|| self.blank()), there.map(|(record, _)| record).as_ref(), record);
        let answer = self.ask(Operation::Swap, method, &name, Some(object)).await?;
        match answer.status {
            200 | 201 => {}
            // Made, changed or deleted since it was read.
            409 => return Err(self.service.conflict()),
            404 if answer.body["details"]["kind"] == "leases" => return Err(self.service.conflict()),
            _ => return Err(self.service.refusal(Operation::Swap, &answer)),
        }
        let count = answer.body["metadata"]["resourceVersion"].as_str();
        let count = count.ok_or_else(|| self.service.nonsense(Operation::Swap))?;
        Ok(version(count, record.nonce))
    }

    fn blank(&self) -> Value {
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.name, "namespace": self.namespace},
        })
    }
}

/// The address of the API that a pod is told.
fn in_cluster(environment: &Environment) -> Option<String> {
    let host = environment.get("KUBERNETES_SERVICE_HOST")?;
    let port = environment.get("KUBERNETES_SERVICE_PORT")?;
    Some(if host.contains(':') { format!("https://[{host}]:{port}") } else { format!("https://{host}:{port}") })
}

/// `object` with `record` in place of `before`; all else in it stays.
fn filled(mut object: Value, before: Option<&LeaseRecord>, record: &LeaseRecord) -> Value {
    let text = String::from_utf8(record.encode()).expect("a record is JSON");
    let is_held = record.state == LeaseState::Held;
    let is_taken =
        is_held && before.is_none_or(|before| before.state == LeaseState::Released || before.holder != record.holder);
    let takings = object["spec"]["leaseTransitions"].as_u64().unwrap_or(0);
    if !object["metadata"]["annotations"].is_object() {
        object["metadata"]["annotations"] = json!({});
    }
    object["metadata"]["annotations"][ANNOTATION] = text.into();
    if !object["spec"].is_object() {
        object["spec"] = json!({});
    }
    let spec = &mut object["spec"];
    let renewed = micro_time(record.renewed);
    if is_taken {
        spec["acquireTime"] = renewed.clone().into();
    }
    spec["holderIdentity"] = if is_held { record.holder.clone().into() } else { Value::Null };
    spec["leaseDurationSeconds"] = record.ttl_ms.div_ceil(1000).into();
    spec["renewTime"] = renewed.into();
    // The first to hold it has taken it over from nobody.
    spec["leaseTransitions"] = (takings + u64::from(is_taken && before.is_some())).into();
    object
}

/// Kubernetes' `MicroTime`.
fn micro_time(time: Timestamp) -> String {
    let time = jiff::Timestamp::from_millisecond(time.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

#[async_trait]
impl LeasePlace for Kubernetes {
    fn describe(&self) -> String {
        self.service.place.clone()
    }

    async fn read(&self) -> Result<Option<(LeaseRecord, Version)>, StoreError> {
        let read = async { self.object().await?.map_or(Ok(None), |object| self.record(&object)) };
        self.service.within(Operation::Get, read).await
    }

    async fn swap(&self, expected: Option<&Version>, record: &LeaseRecord) -> Result<Version, StoreError> {
        self.service.within(Operation::Swap, self.try_swap(expected, record)).await
    }
}
