//! Answers of the proxy that are held until what a write has committed is on another node, or in the store.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::cluster::{Cluster, rows};
use crate::program::wait_for;
use crate::proxy::{Answer, ask, program};
use crate::stream::free_address;

const REPLICA: [&str; 2] = ["--durability=replica", "--proxy-durability=replica"];

/// Nodes with a web application, whose commits are uploaded only when somebody waits for that.
struct Web {
    cluster: Cluster,
    flags: Vec<&'static str>,
}

impl Web {
    /// `a` is the primary, the others its replicas.
    fn start(replicas: &[&'static str], flags: &[&'static str]) -> Self {
        let mut cluster = Cluster::new();
        cluster.sync_interval = "--sync-interval=1h";
        let mut this = Self { cluster, flags: flags.to_vec() };
        this.add("a");
        this.cluster.wait_role("a", "primary");
        wait_for("the database to be there", || this.add_row("a", &["Rhyolite-Durability: store"]).status == 200);
        for name in replicas {
            this.add(name);
            this.cluster.wait_role(name, "replica");
        }
        let addresses: Vec<String> = replicas.iter().map(|name| this.cluster.addresses[name].clone()).collect();
        wait_for("the lease to name the witnesses", || {
            let lease = std::fs::read_to_string(this.cluster.folder.path("store/lease.json")).unwrap_or_default();
            let lease: Value = serde_json::from_str(&lease).unwrap_or_default();
            addresses.iter().all(|address| lease["witnesses"]["nodes"].to_string().contains(address))
        });
        this
    }

    fn add(&mut self, name: &'static str) {
        let (proxy, target, reads) = (free_address(), free_address(), free_address());
        let database = self.cluster.database(name);
        let port = target.rsplit_once(':').unwrap().1;
        let exec = format!("'{}' {port} '{}' {name}", program().display(), database.display());
        let arguments =
            ["--exec", &exec, "--proxy-listen", &proxy, "--proxy-target", &target, "--proxy-read-target", &reads];
        self.cluster.start_with(name, &[&arguments[..], &self.flags].concat());
        std::fs::write(self.cluster.folder.path(&format!("{name}.proxy")), proxy).unwrap();
    }

    fn proxy(&self, name: &str) -> String {
        std::fs::read_to_string(self.cluster.folder.path(&format!("{name}.proxy"))).unwrap()
    }

    fn ask(&self, name: &str, method: &str, path: &str, headers: &[&str]) -> Answer {
        let (proxy, mut answer) = (self.proxy(name), None);
        wait_for("the proxy", || {
            answer = ask(&proxy, method, path, headers).ok();
            answer.is_some()
        });
        answer.unwrap()
    }

    fn add_row(&self, name: &str, headers: &[&str]) -> Answer {
        self.ask(name, "POST", "/add", headers)
    }

    fn count(&self, name: &str) -> i64 {
        let answer = self.ask(name, "GET", "/count", &[]);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body.parse().unwrap()
    }

    fn stop(mut self, names: &[&'static str]) {
        for name in names {
            let outcome = self.cluster.stop(name);
            assert!(!outcome.stderr.contains("ERROR"), "{name}: {outcome:?}");
        }
    }
}

fn level(answer: &Answer) -> Option<&str> {
    answer.header("rhyolite-durability")
}

fn json(answer: &Answer) -> Value {
    serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{e}: {answer:?}"))
}

#[test]
fn a_write_is_answered_when_another_node_has_it_and_otherwise_by_an_error() {
    let web = Web::start(&["b"], &[&REPLICA[..], &["--proxy-durability-timeout=700ms"]].concat());
    let before = web.count("a");
    let added = web.add_row("a", &[]);
    assert_eq!((added.status, level(&added), added.body.clone()), (200, Some("replica"), (before + 1).to_string()));
    // Also one that came in at the replica.
    let added = web.add_row("b", &[]);
    assert_eq!(
        (added.status, level(&added), added.header("x-application")),
        (200, Some("replica"), Some("a")),
        "{added:?}"
    );
    web.cluster.freeze("b");
    for headers in [&[][..], &["Rhyolite-Durability: local"]] {
        let began = Instant::now();
        let late = web.add_row("a", headers);
        assert_eq!((late.status, level(&late)), (504, Some("local")), "nobody may ask for less: {late:?}");
        assert!(began.elapsed() >= Duration::from_millis(700));
        assert!(late.header("x-application").is_none() && late.cookie().is_some(), "{late:?}");
        let said = json(&late);
        let text = said["error"].as_str().unwrap();
        assert!(
            text.starts_with("the application has answered") && text.contains("neither on enough other nodes"),
            "{said}"
        );
        assert_eq!(
            (&said["level"], &said["holds"], &said["safe"]),
            (&"replica".into(), &"local".into(), &false.into()),
            "{said}"
        );
        assert_eq!(late.cookie(), Some(format!("__txid={}", said["txid"].as_str().unwrap())));
    }
    assert_eq!(web.count("a"), before + 4, "what was committed stays so, and reads are not held");
    // More may be asked for: the store, into which nothing is due for an hour.
    let began = Instant::now();
    let stored = web.add_row("a", &["Rhyolite-Durability: store"]);
    assert_eq!((stored.status, level(&stored)), (200, Some("store")), "{stored:?}");
    assert!(began.elapsed() < Duration::from_secs(5));
    web.cluster.signal("b", Signal::CONT);
    wait_for("the replica to be back", || web.add_row("a", &[]).status == 200);
    // What cannot be waited for does not get to the application.
    let before = web.count("a");
    for (wanted, text) in [("quorum", "--nodes"), ("all", "is no level")] {
        let refused = web.add_row("a", &[&format!("Rhyolite-Durability: {wanted}")]);
        assert_eq!((refused.status, refused.body.contains(text)), (400, true), "{refused:?}");
    }
    assert_eq!(web.count("a"), before);
    web.stop(&["b", "a"]);
}

#[test]
fn what_was_answered_is_on_the_next_primary_although_the_store_never_had_it() {
    let mut web = Web::start(&["b"], &REPLICA);
    let before = web.count("a");
    web.cluster.freeze("b");
    // From here on nothing gets into the store.
    web.cluster.lead("a", "store-of-a");
    let proxy = web.proxy("a");
    let answer = std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&proxy, "POST", "/add", &[]).unwrap());
        std::thread::sleep(Duration::from_millis(300));
        assert!(!asking.is_finished(), "answered, and no other node has it");
        web.cluster.signal("b", Signal::CONT);
        asking.join().unwrap()
    });
    assert_eq!((answer.status, level(&answer), answer.body.clone()), (200, Some("replica"), (before + 1).to_string()));
    web.cluster.kill("a");
    web.cluster.wait_role("b", "primary");
    wait_for("the application on b", || web.ask("b", "GET", "/who", &[]).status == 200);
    assert_eq!(web.count("b"), before + 1, "what was answered is missing");
    web.stop(&["b"]);
}

#[test]
fn a_client_may_ask_for_less_where_it_is_let() {
    let flags = ["--durability=replica", "--proxy-durability=replica", "--proxy-durability-min=local"];
    let web = Web::start(&[], &[&flags[..], &["--proxy-durability-timeout=300ms"]].concat());
    let before = web.count("a");
    let held = web.add_row("a", &[]);
    assert_eq!((held.status, level(&held)), (504, Some("local")), "{held:?}");
    let less = web.add_row("a", &["Rhyolite-Durability: local"]);
    assert_eq!((less.status, level(&less)), (200, None), "nothing is waited for: {less:?}");
    assert_eq!(web.count("a"), before + 2);
    web.stop(&["a"]);
}

#[test]
fn a_write_is_answered_while_the_role_is_handed_on() {
    let flags = [&REPLICA[..], &["--proxy-durability-timeout=10s"]].concat();
    let web = Web::start(&["b"], &flags);
    let before = web.count("a");
    let added: i64 = std::thread::scope(|scope| {
        let clients: Vec<_> = ["a", "b"]
            .map(|name| {
                let proxy = web.proxy(name);
                scope.spawn(move || {
                    let (began, mut added) = (Instant::now(), 0);
                    while began.elapsed() < Duration::from_secs(3) {
                        let answer = ask(&proxy, "POST", "/add", &[]).unwrap();
                        assert_eq!(answer.status, 200, "{answer:?}");
                        assert!(level(&answer).is_some_and(|level| level != "local"), "{answer:?}");
                        added += 1;
                    }
                    added
                })
            })
            .into();
        std::thread::sleep(Duration::from_millis(700));
        let outcome = web.cluster.folder.run(&["ctl", "handoff", "--socket", "a.sock"]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    web.cluster.wait_role("b", "primary");
    assert_eq!(web.count("b"), before + added);
    web.stop(&["a", "b"]);
}

#[test]
fn flags_that_contradict_each_other_are_refused() {
    let mut cluster = Cluster::new();
    let proxy = ["--proxy-listen=127.0.0.1:1", "--proxy-target=127.0.0.1:2"];
    for (flags, text) in [
        (&["--proxy-durability=replica"][..], "--proxy-durability replica: nobody here knows which other nodes"),
        (&["--durability=replica", "--proxy-durability=quorum"], "--proxy-durability quorum: nobody here knows"),
        (&["--proxy-durability-min=store"], "--proxy-durability-min store is more than --proxy-durability local"),
        (&["--proxy-durability=store", "--proxy-durability-timeout=0s"], "must not be 0"),
    ] {
        cluster.start_with("a", &[flags, &proxy].concat());
        let outcome = cluster.running.remove("a").unwrap().wait();
        assert_eq!((outcome.code, outcome.stderr.contains(text)), (2, true), "{outcome:?}");
    }
    cluster.start_with("a", &["--proxy-durability=store"]);
    let outcome = cluster.running.remove("a").unwrap().wait();
    let text = "--proxy-durability has no effect without --proxy-listen";
    assert_eq!((outcome.code, outcome.stderr.contains(text)), (2, true), "{outcome:?}");
    assert!(rows(&cluster.database("a")).is_empty());
}
