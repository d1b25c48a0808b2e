//! Translations, and what is refused; the result must be a configuration of ours.

use std::time::Duration;

use super::*;
use crate::config::file::parse;

#[track_caller]
fn translated(text: &str) -> Translation {
    translate(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[track_caller]
fn check(text: &str, expected: &str) {
    let Translation { text, .. } = translated(text);
    let body: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(body.join("\n"), expected.trim(), "{text}");
}

#[track_caller]
fn check_refused(text: &str, line: &str) {
    let error = translate(text).err().unwrap_or_else(|| panic!("{text} was accepted")).to_string();
    assert!(error.contains(line), "{text}: {error}");
}

const REPLICA: &str = "dbs: [{path: /a.db, replica: {url: 's3://b/a'}}]";

#[test]
fn a_usual_file_becomes_one_of_ours() {
    let text = "
        addr: ':9090'
        access-key-id: ${KEY}
        secret-access-key: $SECRET
        logging: {level: warn, type: json, stderr: true}
        snapshot: {interval: 12h, retention: 48h}
        dbs:
          - path: sqlite:///var/lib/app.db
            monitor-interval: 500ms
            truncate-page-n: 0
            replica: {url: 's3://b/app?region=eu-west-1', sync-interval: 2s, part-size: 16MB}
          - path: /var/lib/b.db
            replicas: [{path: /srv/replica/}]
    ";
    check(
        text,
        r#"
addr: ":9090"
dbs:
  - monitor-interval: "500ms"
    path: "/var/lib/app.db"
    replica:
      access-key-id: "${KEY}"
      secret-access-key: "$SECRET"
      sync-interval: "2s"
      url: "s3://b/app/rhyolite?region=eu-west-1"
  - path: "/var/lib/b.db"
    replica:
      path: "/srv/replica/rhyolite"
      type: "file"
keep:
  every-commit: "48h"
logging:
  level: "warn"
  type: "json"
snapshot:
  interval: "12h"
"#,
    );
    let Translation { text, notes } = translated(text);
    let config = parse(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(config.databases.len(), 2);
    assert_eq!(config.databases[0].sync_interval, Duration::from_secs(2));
    assert_eq!(config.databases[1].store, "/srv/replica/rhyolite");
    let keys: Vec<&str> = notes.iter().map(|note| note.key.as_str()).collect();
    let expected = [
        "logging.stderr",
        "snapshot.retention",
        "dbs[0].truncate-page-n",
        "dbs[0].replica.part-size",
        "dbs[0].replica",
        "dbs[1].replica",
    ];
    assert_eq!(keys, expected);
}

#[test]
fn folders_the_socket_and_a_retention_that_is_off_mean_the_same() {
    let text = "
        socket: {enabled: true, path: /run/s.sock, permissions: '0600'}
        retention: {enabled: false}
        dbs:
          - dir: /var/lib/tenants
            pattern: '*.db'
            recursive: true
            watch: true
            meta-dir: /var/lib/litestream
            replica: {url: 's3://b/tenants'}
    ";
    let Translation { text, notes } = translated(text);
    let config = parse(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let socket = config.socket.expect("it is on");
    assert_eq!((socket.path.to_str(), socket.permissions), (Some("/run/s.sock"), 0o600));
    let [folder] = &config.folders[..] else { panic!("{:?}", config.folders) };
    assert!(folder.recursive && folder.watch && folder.meta_path.is_none(), "{folder:?}");
    assert_eq!(folder.template.duty, rhyolite_logic::history_plan::Duty::Compact, "nothing is deleted");
    assert_eq!(folder.database("x/1.db").store, "s3://b/tenants/rhyolite/x/1.db");
    let keys: Vec<&str> = notes.iter().map(|note| note.key.as_str()).collect();
    assert_eq!(keys, ["socket", "dbs[0].meta-dir", "dbs[0].replica"]);
}

#[test]
fn what_the_backup_depends_on_is_refused() {
    for (text, line) in [
        ("retention: {enable: false}", "unknown key `retention.enable`"),
        ("socket: {mode: 7}", "unknown key `socket.mode`"),
        ("dbs: [{pattern: '*.db', replica: {path: /r}}]", "dbs[0].path is missing"),
        ("dbs: [{path: a.db}]", "dbs[0].replica is missing"),
        ("dbs: [{path: a.db, replicas: [{path: /a}, {path: /b}]}]", "exactly one store"),
        ("dbs: [{path: a.db, restore-if-db-not-exists: true, replica: {path: /r}}]", "--if-missing --if-backup-exists"),
        (
            "dbs: [{path: a.db, replica: {path: /r, age: {recipients: [x]}}}]",
            "dbs[0].replica.age: there is no encryption",
        ),
        ("dbs: [{path: a.db, replica: {url: 's3://b/a', sse-kms-key-id: k}}]", "without this encryption"),
        ("dbs: [{path: a.db, replica: {type: oss, bucket: b}}]", "oss is not supported"),
        ("dbs: [{path: a.db, replica: {type: nats, url: 'nats://h/b', jwt: x}}]", "NATS is not supported"),
        ("dbs: [{path: a.db, replica: {url: 's3://b.s3.eu-west-1.amazonaws.com/a'}}]", "names a server"),
        ("dbs: [{path: a.db, replica: {path: /r, retention: 24h}}]", "unknown key `dbs[0].replica.retention`"),
        ("replica: {path: /r}", "unknown key `replica`"),
        ("snapshot: {intervall: 1h}", "unknown key `snapshot.intervall`"),
        ("logging: {colour: true}", "unknown key `logging.colour`"),
        ("[1]", "no mapping"),
        ("dbs: {path: a.db}", "no list"),
        ("dbs: [a.db]", "dbs[0]: it is no mapping"),
        ("dbs: [", ""),
    ] {
        check_refused(text, line);
    }
}

#[test]
fn what_is_switched_off_is_not_refused() {
    for text in [
        "retention: {enabled: true}",
        "dbs: [{path: a.db, restore-if-db-not-exists: false, watch: false, replica: {path: /r, age: {recipients: []}}}]",
    ] {
        translated(text);
    }
}

#[test]
fn every_key_of_litestreams_has_a_rule() {
    let process = "addr dbs logging snapshot retention socket mcp-addr levels l0-retention l0-retention-check-interval validation \
                   verify-compaction heartbeat-url heartbeat-interval exec shutdown-sync-timeout shutdown-sync-interval";
    let database = "path dir pattern recursive watch meta-path meta-dir monitor-interval checkpoint-interval busy-timeout \
                    min-checkpoint-page-count truncate-page-n max-sync-wal-bytes restore-if-db-not-exists snapshot replica replicas";
    let replica = "type name path url sync-interval max-sync-ltx-files auto-recover validation-interval age access-key-id \
                   secret-access-key region bucket endpoint force-path-style sign-payload require-content-md5 skip-verify \
                   storage-class part-size concurrency sse-customer-algorithm sse-customer-key sse-customer-key-path sse-kms-key-id \
                   account-name account-key sas-token host user password key-path concurrent-writes host-key webdav-url \
                   webdav-username webdav-password jwt seed creds nkey username token tls root-cas client-cert client-key \
                   max-reconnects reconnect-wait timeout";
    for (keys, rule_of) in [
        (process, rule_of_process as fn(&str) -> Option<Rule>),
        (database, rule_of_database),
        (replica, rule_of_replica),
        (replica, rule_of_process),
    ] {
        for key in keys.split_whitespace() {
            assert!(rule_of(key).is_some(), "{key}");
        }
    }
    assert!(rule_of_replica("sync_interval").is_none());
}

#[test]
fn defaults_go_to_the_replicas_that_take_them() {
    let text = format!("region: eu-west-1\naccount-name: acc\nsync-interval: 3s\n{REPLICA}");
    let Translation { text, .. } = translated(&text);
    assert!(text.contains("s3://b/a/rhyolite?region=eu-west-1\"") && !text.contains("acc"), "{text}");
    let config = parse(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(config.databases[0].sync_interval, Duration::from_secs(3));
}

#[test]
fn a_file_is_recognised_by_its_name() {
    for (path, expected) in [
        ("/etc/litestream.yml", true),
        ("litestream.yaml", true),
        ("rhyolite.yml", false),
        ("my-litestream.yml", false),
        ("litestream.yml/x", false),
    ] {
        assert_eq!(is_litestreams(std::path::Path::new(path)), expected, "{path}");
    }
}
