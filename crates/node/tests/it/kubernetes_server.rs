//! A stand-in for the API server of Kubernetes, which no package registry has: Lease objects with what its reference says of `resourceVersion` and
//! `uid`, of statuses, and of valid fields. No more: no users, no watches, one namespace like another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

/// A running one. Its thread ends with the process, its service with [`KubernetesServer::stop`].
pub(crate) struct KubernetesServer {
    pub(crate) port: u16,
    objects: Objects,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    /// What a pod has: `token`.
    pub(crate) account: tempfile::TempDir,
}

#[derive(Default)]
struct Kept {
    leases: HashMap<String, Value>,
    versions: u64,
    uids: u64,
    token: String,
}

type Objects = Arc<Mutex<Kept>>;
type Answer = (StatusCode, Json<Value>);

impl KubernetesServer {
    pub(crate) fn start() -> Self {
        let objects = Objects::default();
        let all = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases";
        let router = Router::new()
            .route(all, post(create))
            .route(&format!("{all}/{{name}}"), get(read).put(replace))
            .with_state(Arc::clone(&objects));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    served = axum::serve(listener, router).into_future() => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        let account = tempfile::tempdir().unwrap();
        let server = Self { port, objects, stop: Some(stop), thread: Some(thread), account };
        server.give_token("one");
        server
    }

    /// Takes this token from now on, and gives it to the pod.
    pub(crate) fn give_token(&self, token: &str) {
        self.objects.lock().unwrap().token = token.to_owned();
        std::fs::write(self.account.path().join("token"), format!("{token}\n")).unwrap();
    }

    /// An object as it is kept.
    pub(crate) fn lease(&self, name: &str) -> Value {
        self.objects.lock().unwrap().leases[name].clone()
    }

    /// Puts an object there, whoever would have to be asked.
    pub(crate) fn put(&self, name: &str, spec: Value) {
        let object = json!({"kind": "Lease", "metadata": {"name": name, "labels": {"app": "x"}}, "spec": spec});
        let mut kept = self.objects.lock().unwrap();
        let object = kept.stamp(object, true);
        kept.leases.insert(name.to_owned(), object);
    }

    /// Loses everything, and counts from the beginning again.
    pub(crate) fn wipe(&self) {
        let mut kept = self.objects.lock().unwrap();
        kept.leases.clear();
        kept.versions = 0;
    }

    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Kept {
    fn stamp(&mut self, mut object: Value, is_new: bool) -> Value {
        self.versions += 1;
        if is_new {
            self.uids += 1;
            object["metadata"]["uid"] = format!("uid-{}", self.uids).into();
        }
        object["metadata"]["resourceVersion"] = self.versions.to_string().into();
        object
    }

    fn check(&self, headers: &HeaderMap) -> Result<(), Answer> {
        let given = headers.get("authorization").and_then(|value| value.to_str().ok());
        let is_right = given == Some(&format!("Bearer {}", self.token));
        if is_right { Ok(()) } else { Err(failure(StatusCode::UNAUTHORIZED, "Unauthorized")) }
    }
}

fn failure(status: StatusCode, reason: &str) -> Answer {
    let body = json!({"kind": "Status", "status": "Failure", "reason": reason, "code": status.as_u16(),
        "message": format!("the stand-in says {reason}"), "details": {"kind": "leases"}});
    (status, Json(body))
}

/// What the API checks of a Lease.
fn is_valid(object: &Value) -> bool {
    let spec = &object["spec"];
    let is_micro_time = |value: &Value| {
        let text = value.as_str().unwrap_or_default();
        value.is_null()
            || (text.len() == "2026-11-30T09:00:00.000000Z".len() && text.ends_with('Z') && &text[19..20] == ".")
    };
    object["kind"] == "Lease"
        && spec["holderIdentity"].as_str() != Some("")
        && spec["leaseDurationSeconds"].as_i64().is_none_or(|seconds| seconds > 0)
        && spec["leaseTransitions"].as_i64().is_none_or(|count| count >= 0)
        && is_micro_time(&spec["renewTime"])
        && is_micro_time(&spec["acquireTime"])
}

async fn read(State(kept): State<Objects>, Path((_, name)): Path<(String, String)>, headers: HeaderMap) -> Answer {
    let kept = kept.lock().unwrap();
    if let Err(refused) = kept.check(&headers) {
        return refused;
    }
    match kept.leases.get(&name) {
        Some(object) => (StatusCode::OK, Json(object.clone())),
        None => failure(StatusCode::NOT_FOUND, "NotFound"),
    }
}

async fn create(State(kept): State<Objects>, headers: HeaderMap, Json(object): Json<Value>) -> Answer {
    let mut kept = kept.lock().unwrap();
    if let Err(refused) = kept.check(&headers) {
        return refused;
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if !is_valid(&object) || name.is_empty() || object["metadata"]["resourceVersion"].is_string() {
        return failure(StatusCode::UNPROCESSABLE_ENTITY, "Invalid");
    }
    if kept.leases.contains_key(&name) {
        return failure(StatusCode::CONFLICT, "AlreadyExists");
    }
    let object = kept.stamp(object, true);
    kept.leases.insert(name, object.clone());
    (StatusCode::CREATED, Json(object))
}

async fn replace(
    State(kept): State<Objects>,
    Path((_, name)): Path<(String, String)>,
    headers: HeaderMap,
    Json(object): Json<Value>,
) -> Answer {
    let mut kept = kept.lock().unwrap();
    if let Err(refused) = kept.check(&headers) {
        return refused;
    }
    let Some(before) = kept.leases.get(&name) else { return failure(StatusCode::NOT_FOUND, "NotFound") };
    if !is_valid(&object) || !object["metadata"]["resourceVersion"].is_string() {
        return failure(StatusCode::UNPROCESSABLE_ENTITY, "Invalid");
    }
    let is_same =
        |field: &str| object["metadata"][field].is_null() || object["metadata"][field] == before["metadata"][field];
    if !is_same("uid") || !is_same("resourceVersion") {
        return failure(StatusCode::CONFLICT, "Conflict");
    }
    let object = kept.stamp(object, false);
    kept.leases.insert(name, object.clone());
    (StatusCode::OK, Json(object))
}
