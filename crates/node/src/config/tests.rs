//! The configuration file as text in, resolved values or one line out.

use std::time::Duration;

use super::file::parse;
use super::*;

const ONE: &str = "dbs:\n  - path: /data/app.db\n    replica:\n      url: s3://bucket/app\n";

#[track_caller]
fn check_error(text: &str, expected: &str) {
    match parse(text) {
        Ok(config) => panic!("accepted {text:?} as {config:?}"),
        Err(error) => assert_eq!(error.to_string(), expected, "{text}"),
    }
}

#[test]
fn the_smallest_file() {
    let config = parse(ONE).unwrap();
    let expected = DatabaseConfig::new("/data/app.db".into(), "s3://bucket/app".to_owned());
    assert_eq!(config, Config { databases: vec![expected], ..Config::default() });
}

#[test]
fn a_folder_has_one_lease_and_a_shared_lease_one_time_to_live() {
    let folder = "dbs: [{dir: /data, pattern: '*.db', replica: {url: s3://b/all}}]";
    let folder = &parse(folder).unwrap().folders[0];
    let (one, other) = (folder.database("a.db").lease, folder.database("x/b.db").lease);
    assert_eq!((&one, one.store.as_deref()), (&other, Some("s3://b/all")));
    assert_eq!(one.meta_path, Some("/data/.lease-rhyolite".into()));
    let text = "
dbs:
  - {path: /a.db, replica: {url: ./a}, lease: {url: ./l}}
  - {path: /b.db, replica: {url: ./b}, lease: {url: ./l, ttl: 5m}}
";
    check_error(text, "line 4: lease.ttl is 5m, and 1m for the same lease (./l) on line 3");
    assert!(parse(&text.replace("url: ./l,", "enabled: false, url: ./l,")).is_ok());
}

#[test]
fn an_empty_file_names_no_database() {
    assert_eq!(parse("").unwrap(), Config::default());
    assert_eq!(parse("# nothing\n").unwrap(), Config::default());
}

#[test]
fn a_setting_of_the_database_wins_over_the_top() {
    let text = "
sync-interval: 5s
monitor-interval: 2s
keep: {daily: 90d, hourly: 10d}
dbs:
  - path: /a.db
    replica: {url: ./a, sync-interval: 0}
    keep: {daily: 60d}
  - path: /b.db
    replica: {url: ./b}
";
    let config = parse(text).unwrap();
    let figures = |d: &DatabaseConfig| {
        (d.sync_interval.as_secs(), d.monitor_interval.as_secs(), d.history.keep_daily, d.history.keep_hourly)
    };
    let days = |n: u64| Duration::from_secs(n * 86_400);
    assert_eq!(figures(&config.databases[0]), (0, 2, days(60), days(10)));
    assert_eq!(figures(&config.databases[1]), (5, 2, days(90), days(10)));
}

#[test]
fn every_key_at_once() {
    let text = "
addr: ':9090'
exec: ./app --port 80
shutdown-sync-timeout: 10s
logging: {level: debug, type: json}
dbs:
  - path: /data/app.db
    meta-path: /meta/app
    replica:
      type: s3
      bucket: b
      path: p/q
      region: eu
      endpoint: http://h:1
      force-path-style: true
      skip-verify: false
      access-key-id: A
      secret-access-key: S
      sync-interval: 250ms
    monitor-interval: 3s
    busy-timeout: 4s
    enable-wal: yes
    checkpoint-interval: 0
    min-checkpoint-page-count: 10
    truncate-page-n: 20
    max-log-size: 32MiB
    max-segment-size: 1MiB
    bundle: {interval: 1m}
    merge: {interval: 2m}
    snapshot: {interval: 3m}
    keep: {every-commit: 1h, hourly: 2h, daily: 3h}
    lease: {enabled: false, ttl: 5s, if-held: exit, url: ./leases}
    retention: {enabled: false, grace: 5m}
    drill: {interval: 1h, sample: 2MiB}
";
    let seconds = Duration::from_secs;
    let config = parse(text).unwrap();
    assert_eq!(config.addr, Some("0.0.0.0:9090".parse().unwrap()));
    assert_eq!(config.exec.as_deref(), Some("./app --port 80"));
    assert_eq!(config.shutdown_sync_timeout, seconds(10));
    assert_eq!(config.logging, LoggingConfig { level: LogLevel::Debug, format: LogFormat::Json });
    let expected = DatabaseConfig {
        refuses_links: false,
        path: "/data/app.db".into(),
        store: "s3://b/p/q?region=eu&endpoint=http://h:1&force-path-style=true&skip-verify=false".to_owned(),
        credentials: Credentials(
            [("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "S")].map(|(k, v)| (k.into(), v.into())).into(),
        ),
        meta_path: "/meta/app".into(),
        sync_interval: Duration::from_millis(250),
        monitor_interval: seconds(3),
        busy_timeout: seconds(4),
        enable_wal: true,
        checkpoint: CheckpointConfig { pages_min: 10, interval: Duration::ZERO, truncate_pages: 20 },
        log_bytes_max: 32 << 20,
        segment_bytes_max: 1 << 20,
        history: Policy {
            bundle_interval: seconds(60),
            merge_interval: seconds(120),
            snapshot_interval: seconds(180),
            keep_every_commit: seconds(3_600),
            keep_hourly: seconds(7_200),
            keep_daily: seconds(10_800),
            grace: seconds(300),
            ..Policy::default()
        },
        lease: LeaseConfig {
            enabled: false,
            ttl: seconds(5),
            if_held: IfHeld::Exit,
            store: Some("./leases".to_owned()),
            meta_path: None,
        },
        duty: Duty::Compact,
        drill: DrillConfig { interval: seconds(3_600), sample_bytes: 2 << 20 },
    };
    assert_eq!(config.databases, [expected]);
}

#[test]
fn unknown_keys_are_errors_with_line_and_suggestion() {
    check_error("adr: ':1'\n", "line 1: unknown key `adr`; did you mean `addr`?");
    let text = "dbs:\n  - pth: /a.db\n    replica: {url: ./a}\n";
    check_error(text, "line 2: unknown key `pth`; did you mean `path`?");
    let text = "dbs:\n  - path: /a.db\n    replica:\n      url: ./a\n      uri: ./b\n";
    check_error(text, "line 5: unknown key `uri`; did you mean `url`?");
    check_error("\nsnapshot:\n  zzz: 1h\n", "line 3: unknown key `zzz`; known here: interval");
    let hint = "line 1: unknown key `levels`: levels are set by bundle.interval and merge.interval";
    check_error("levels:\n  - interval: 30s\n", hint);
}

#[test]
fn wrong_values_are_errors_with_line() {
    let duration = "\"5\" is no duration: write a number with a unit (ms, s, m, h, d, w), such as 500ms or 1h30m";
    check_error("\nsync-interval: 5\n", &format!("line 2: {duration}"));
    let text = "addr: here\n";
    check_error(text, "line 1: \"here\" is no address: write IP:PORT, such as 127.0.0.1:9090, or :9090");
    let errors = [
        ("logging: {level: loud}", "line 1: unknown value `loud`; known here: trace, debug, info, warn, error"),
        ("min-checkpoint-page-count: 0", "line 1: "),
        ("dbs: 5", "line 1: "),
        ("a: b: c", "line 1: "),
        ("addr: ':1'\naddr: ':2'\n", "line 2: duplicate"),
        ("dbs:\n  - path: [\n", "line "),
    ];
    for (text, expected) in errors {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.starts_with(expected) && !error.contains('\n'), "{text:?}: {error}");
    }
}

#[test]
fn what_cannot_go_together_is_an_error() {
    let missing = "line 2: database /a.db: a database needs `replica.url`, or `replica.type` with `path` or `bucket`";
    check_error("dbs:\n  - path: /a.db\n", missing);
    check_error("dbs:\n  - replica: {url: ./a}\n", "line 2: a database needs a `path`");
    let both = "dbs:\n  - path: /a.db\n    replica: {url: ./a, bucket: b}\n";
    check_error(both, "line 2: database /a.db: replica.url excludes replica.bucket: put it into the URL");
    let same = format!("{ONE}  - path: /data/other.db\n    replica: {{url: s3://bucket/app}}\n");
    check_error(&same, "line 5: store s3://bucket/app is already used by the database on line 2");
    let order = format!("{ONE}    bundle: {{interval: 2h}}\n");
    check_error(
        &order,
        "line 2: database /data/app.db: bundle.interval (2h) must not be longer than merge.interval (1h)",
    );
    let small = format!("{ONE}    max-log-size: 1MiB\n");
    let expected = "max-log-size (1.0 MiB) must not be less than max-segment-size (8.0 MiB)";
    check_error(&small, &format!("line 2: database /data/app.db: {expected}"));
}

#[test]
fn folders_of_databases() {
    let text = "
dbs:
  - dir: /data
    pattern: '*.db'
    recursive: true
    watch: true
    include: ['*.sqlite']
    exclude: ['tmp-*']
    meta-dir: /meta
    enable-wal: true
    replica: {url: 's3://b/all?region=r', access-key-id: A, secret-access-key: S}
  - path: /srv/*/app.db
    replica: {url: ./srv}
";
    let config = parse(text).unwrap();
    assert!(config.databases.is_empty());
    let [data, srv] = &config.folders[..] else { panic!("{config:?}") };
    assert!(data.recursive && data.watch && data.pick.takes("x/a.sqlite") && !data.pick.takes("tmp-a.db"));
    let database = data.database("x/a.db");
    assert_eq!(database.path, Path::new("/data/x/a.db"));
    assert_eq!(database.store, "s3://b/all/x/a.db?region=r");
    assert_eq!(database.meta_path, Path::new("/meta/x/.a.db-rhyolite"));
    assert!(database.enable_wal && !database.credentials.0.is_empty());
    assert_eq!((srv.dir.as_path(), srv.recursive, srv.watch), (Path::new("/srv"), true, false));
    assert!(srv.pick.takes("x/app.db") && !srv.pick.takes("app.db"));
    assert_eq!(srv.database("x/app.db").meta_path, Path::new("/srv/x/.app.db-rhyolite"));

    let entry = |keys: &str| format!("dbs:\n  - {{{keys}, replica: {{url: ./b}}}}\n");
    check_error(&entry("dir: /d"), "line 2: `dir` needs a `pattern` such as \"*.db\"");
    check_error(&entry("dir: /d, path: /d/a.db"), "line 2: an entry has either `path` or `dir`");
    check_error(&entry("path: /a.db, watch: true"), "line 2: `watch` goes with `dir`, or with a pattern as `path`");
    let meta = "line 2: databases in /d: `meta-path` is for one database; many have `meta-dir`";
    check_error(&entry("dir: /d, pattern: '*', meta-path: /m"), meta);
    let broken = "line 2: databases in /d: the pattern \"[a\" has a `[` without `]`";
    check_error(&entry("dir: /d, pattern: '[a'"), broken);
}

#[test]
fn the_control_socket() {
    let socket = |keys: &str| parse(&format!("socket: {{{keys}}}\n")).map(|c| c.socket);
    assert_eq!(socket("path: /s").unwrap(), None, "not enabled");
    let found = socket("enabled: true").unwrap().unwrap();
    assert_eq!((found.path.to_str(), found.permissions), (Some("/var/run/rhyolite.sock"), 0o600));
    for written in ["0660", "660", "'0660'", "'0o660'"] {
        let keys = format!("enabled: true, permissions: {written}");
        assert_eq!(socket(&keys).unwrap().unwrap().permissions, 0o660, "{written}");
    }
    check_error("socket: {enabled: true, permissions: 999}\n", "socket.permissions: 999 is no file mode such as 0600");
}

#[test]
fn keys_of_stores() {
    let file = |replica: &str| format!("dbs:\n  - path: /a.db\n    replica: {{{replica}}}\n");
    let database = |replica: &str| parse(&file(replica)).map(|c| c.databases[0].clone());
    let azure = database("type: abs, bucket: c, account-name: acc, account-key: k").unwrap();
    assert_eq!(azure.store, "abs://c/?account=acc");
    assert!(!format!("{azure:?}").contains("\"k\""), "secrets are not shown");
    let StoreOptions { environment } = azure.store_options();
    assert_eq!(environment.get("AZURE_STORAGE_ACCOUNT_KEY").as_deref(), Some("k"));
    assert_eq!(environment.get("PATH"), std::env::var("PATH").ok());

    let prefix = "line 2: database /a.db: ";
    let other = "replica.access-key-id is for S3, but the store is another kind";
    check_error(&file("url: ./b, access-key-id: a, secret-access-key: b"), &format!("{prefix}{other}"));
    let half = "replica.access-key-id and replica.secret-access-key go together";
    check_error(&file("url: 's3://b', access-key-id: a"), &format!("{prefix}{half}"));
    check_error(&file("type: file, path: b, region: x"), &format!("{prefix}replica.type file takes only `path`"));
}

#[test]
fn servers_of_files() {
    let file = |replica: &str| format!("dbs:\n  - path: /a.db\n    replica: {{{replica}}}\n");
    let database = |replica: &str| parse(&file(replica)).map(|c| c.databases[0].clone());
    let sftp =
        "type: sftp, host: 'h:2222', user: u, path: /srv/b, password: p, key-path: /k, host-key: 'ssh-ed25519 A+/='";
    let sftp = database(sftp).unwrap();
    assert_eq!(sftp.store, "sftp://u@h:2222/srv/b?key-path=/k&host-key=ssh-ed25519%20A%2B/=");
    assert_eq!(sftp.store_options().environment.get("SFTP_PASSWORD").as_deref(), Some("p"));
    assert_eq!(database("type: sftp, host: h, path: b").unwrap().store, "sftp://h/~/b");
    let webdav = "type: webdav, webdav-url: 'https://h/dav/', webdav-username: u, webdav-password: p, path: 'b?'";
    let webdav = database(webdav).unwrap();
    assert_eq!(webdav.store, "webdavs://h/dav/b%3F");
    assert_eq!(webdav.store_options().environment.get("WEBDAV_PASSWORD").as_deref(), Some("p"));
    assert!(!format!("{webdav:?}{sftp:?}").contains("\"p\""), "secrets are not shown");
    let beside = database("url: 'webdav://h/b', webdav-username: u").unwrap();
    assert_eq!(beside.store_options().environment.get("WEBDAV_USERNAME").as_deref(), Some("u"));
    let service = database("type: s3, bucket: b, provider: hetzner, region: fsn1").unwrap();
    assert_eq!(service.store, "s3://b/?region=fsn1&provider=hetzner");

    let prefix = "line 2: database /a.db: ";
    for (replica, message) in [
        ("type: sftp, path: b", "replica.type sftp needs `host`"),
        ("type: sftp, host: h", "replica.type sftp needs `path`"),
        ("type: sftp, host: h, path: b, bucket: c", "replica.bucket has no effect on this replica.type"),
        ("type: s3, bucket: b, host: h", "replica.host has no effect on this replica.type"),
        ("type: webdav", "replica.type webdav needs `webdav-url`"),
        ("type: webdav, webdav-url: h", "replica.webdav-url \"h\" does not begin with http:// or https://"),
        ("url: 's3://b', password: p", "replica.password is for SFTP, but the store is another kind"),
        ("url: 'sftp://u@h/b', host: h", "replica.url excludes replica.host: put it into the URL"),
    ] {
        check_error(&file(replica), &format!("{prefix}{message}"));
    }
}

#[test]
fn aliases_cannot_multiply_without_bound() {
    let mut text = String::from("a: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..9 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    parse(&text).expect_err("an alias bomb");
}

#[test]
fn state_folder_lies_beside_the_database() {
    assert_eq!(default_meta_path(Path::new("/var/lib/app.db")), Path::new("/var/lib/.app.db-rhyolite"));
}
