//! `GET /v1/wait`: an application asks its node, over HTTP, when its commits are where it wants them.

use std::path::Path;
use std::time::{Duration, Instant};

use rhyolite_node::stream::client::{Access, Link};
use rustix::process::Signal;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::durability;
use crate::program::{Folder, wait_for};
use crate::proxy::ask;
use crate::stream::{free_address, put_certificate};

/// Status and JSON.
fn wait_at(address: &str, query: &str, headers: &[&str]) -> (u16, Value) {
    let answer = ask(address, "GET", &format!("/v1/wait?{query}"), headers).unwrap();
    assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
    (answer.status, serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{e}: {answer:?}")))
}

fn wait(cluster: &Cluster, name: &str, query: &str) -> (u16, Value) {
    wait_at(&cluster.addresses[name], &format!("db=app.db&{query}"), &[])
}

fn error(answer: &Value) -> &str {
    answer["error"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

#[test]
fn commits_are_waited_for_and_what_holds_is_said() {
    let cluster = durability::cluster(&["b"]);
    let began = Instant::now();
    let (status, there) = wait(&cluster, "a", "level=replica");
    assert_eq!(
        (status, &there["safe"], &there["holds"], &there["durable"]),
        (200, &true.into(), &"replica".into(), &false.into()),
        "{there}"
    );
    assert!(there["durable_txid"].as_str() < there["txid"].as_str(), "nothing is uploaded for that: {there}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let (status, here) = wait(&cluster, "a", "level=local");
    assert_eq!((status, &here["safe"], &here["level"]), (200, &true.into(), &"local".into()), "{here}");
    cluster.freeze("b");
    cluster.wait_writing("a");
    let began = Instant::now();
    let (status, late) = wait(&cluster, "a", "level=replica&timeout=700ms");
    assert_eq!((status, &late["safe"], &late["holds"]), (504, &false.into(), &"local".into()), "{late}");
    assert!(error(&late).contains("neither on enough other nodes nor in the store"), "{late}");
    assert!(began.elapsed() >= Duration::from_millis(700));
    let txid = late["txid"].as_str().unwrap().to_owned();
    assert!(late["replicated_txid"].as_str() < Some(&txid) && late["local_txid"].as_str() >= Some(&txid), "{late}");
    // The same commit, once the other goes on.
    let waited = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| wait(&cluster, "a", &format!("level=replica&txid={txid}&timeout=20s")));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished(), "nobody else has it");
        cluster.signal("b", Signal::CONT);
        waiting.join().unwrap()
    });
    assert_eq!(
        (waited.0, waited.1["txid"].as_str(), &waited.1["holds"]),
        (200, Some(&*txid), &"replica".into()),
        "{waited:?}"
    );
    // Only who wants it in the store has it uploaded before it is due.
    let (status, stored) = wait(&cluster, "a", "level=store&timeout=20s");
    assert_eq!((status, &stored["durable"], &stored["holds"]), (200, &true.into(), &"store".into()), "{stored}");
    end(cluster);
}

fn end(mut cluster: Cluster) {
    cluster.stop("b");
    cluster.stop_primary("a");
    cluster.check_store();
}

#[test]
fn what_cannot_be_said_is_refused_with_the_reason() {
    let cluster = durability::cluster(&["b"]);
    for (query, status, text) in [
        ("db=app.db&level=quorum", 400, "`--durability quorum` and `--nodes`"),
        ("db=app.db&level=all", 400, "local, replica, quorum or store"),
        ("db=app.db&levl=local", 400, "\"levl\" is not known"),
        ("db=app.db&timeout=1h", 400, "more than 10m"),
        ("level=local", 400, "`db` is missing"),
        ("db=other.db&level=local", 404, "\"other.db\""),
        ("db=app.db&txid=9999999&timeout=100ms", 504, "not durable so far"),
    ] {
        let (was, answer) = wait_at(&cluster.addresses["a"], query, &[]);
        assert_eq!((was, error(&answer).contains(text)), (status, true), "{query}: {answer}");
    }
    let (status, elsewhere) = wait(&cluster, "b", "level=replica");
    assert_eq!((status, elsewhere["primary"].as_str()), (421, Some(&*cluster.addresses["a"])), "{elsewhere}");
    assert!(error(&elsewhere).starts_with("this node is replica: ask the primary"), "{elsewhere}");
    for (method, path, status) in [("POST", "/v1/wait?db=app.db", 400), ("GET", "/v1/databases", 404)] {
        let answer = ask(&cluster.addresses["a"], method, path, &[]).unwrap();
        assert_eq!(answer.status, status, "{answer:?}");
    }
    // As everything else there, also over HTTP/2.
    let read = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let address = format!("http://{}", cluster.addresses["a"]).parse().unwrap();
        let link = Link::connect(&address, &Access::default(), Duration::from_secs(10)).await.unwrap();
        link.read("/v1/wait?db=app.db&level=replica", 4096).await.unwrap()
    });
    let json: Value = serde_json::from_slice(&read.1).unwrap();
    assert_eq!((&json["safe"], &json["level"]), (&true.into(), &"replica".into()), "{json}");
    end(cluster);
}

#[test]
fn who_does_not_know_the_token_is_told_nothing() {
    let mut cluster = Cluster::new();
    let token = "--cluster-token=a-secret-of-nodes";
    cluster.start_application("a", &[token]);
    cluster.wait_writing("a");
    let address = &cluster.addresses["a"];
    for headers in [&[][..], &["Authorization: Bearer another"], &["Authorization: a-secret-of-nodes"]] {
        let (status, refused) = wait_at(address, "db=app.db&level=local", headers);
        assert_eq!((status, error(&refused)), (401, "the token is missing or wrong"), "{refused}");
    }
    let known = ["Authorization: Bearer a-secret-of-nodes"];
    // A database that was just made is not found yet.
    wait_for("the database to be known", || wait_at(address, "db=app.db&level=local", &known).0 != 404);
    let (status, answer) = wait_at(address, "db=app.db&level=store", &known);
    assert_eq!((status, &answer["holds"]), (200, &"store".into()), "{answer}");
    cluster.stop_primary("a");
}

#[test]
fn over_tls_with_a_certificate() {
    let folder = Folder::new();
    ["ca", "node", "follower"].into_iter().for_each(|name| put_certificate(&folder, name, name));
    let address = free_address();
    let tls = ["--cluster-cert", "node.pem", "--cluster-key", "node.key", "--cluster-ca", "ca.pem"];
    let node = folder
        .start(&[&["node", "a", "--store", "store", "--listen", &address, "--socket", "a.sock"][..], &tls].concat());
    wait_for("a to be the primary", || {
        let outcome = folder.run(&["ctl", "node", "--json", "--socket", "a.sock"]);
        outcome.stdout.contains("\"role\":\"primary\"")
    });
    let db = folder.database("a/app.db");
    db.execute("INSERT INTO t VALUES (1)", []).unwrap();
    let program = "\
import http.client, ssl, sys
context = ssl.create_default_context(cafile='ca.pem')
if len(sys.argv) > 2: context.load_cert_chain('follower.pem', 'follower.key')
connection = http.client.HTTPSConnection(sys.argv[1], context=context, timeout=30)
connection.request('GET', '/v1/wait?db=app.db&level=store')
answer = connection.getresponse()
print(answer.status, answer.read().decode())
";
    let ask = |more: &[&str]| {
        let output =
            folder.command_of(Path::new("python3")).args(["-c", program, &address]).args(more).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    wait_for("the database to be known", || !ask(&["known"]).starts_with("404"));
    let answer = ask(&["known"]);
    assert!(answer.starts_with("200 ") && answer.contains("\"holds\":\"store\""), "{answer}");
    let stranger = ask(&[]);
    assert!(!stranger.contains("200 "), "{stranger}");
    drop(db);
    node.signal(Signal::TERM);
    assert_eq!(node.wait().code, 0);
}
