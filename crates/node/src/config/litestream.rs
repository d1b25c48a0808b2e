//! `litestream.yml` as a `rhyolite.yml`: which keys mean the same, and what is said about the others.
//!
//! The translation is a text, which is then read like any other configuration: what `rhyolite config` prints is what
//! `replicate` does. Invariants:
//! 1. Every key of Litestream's has a rule. A key that neither program knows is an error, as in a file of ours.
//! 2. What would make the backup less than it was (no encryption, no replica, a database that is not replicated, data that is
//!    deleted although it was to be kept) is an error, not a note.
//! 3. A store gets a folder of its own below the place that Litestream writes to: the two never mix their objects.

use std::fmt;

use serde_json::{Map, Value};

use super::ConfigError;
use super::file::ReplicaType;

/// The folder below a Litestream replica that becomes the store.
pub const STORE_FOLDER: &str = "rhyolite";

/// What becomes of a key of Litestream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoteKind {
    /// It means something else here.
    Different,
    /// What it is for happens anyway, or cannot happen here.
    NotNeeded,
    /// It has no counterpart, and nothing of the backup hangs on it.
    NotSupported,
}

impl NoteKind {
    /// How it is named in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Different => "different",
            Self::NotNeeded => "not needed",
            Self::NotSupported => "not supported",
        }
    }
}

/// Something to know about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The key, with its place: `dbs[0].replica.part-size`.
    pub key: String,
    /// What becomes of it.
    pub kind: NoteKind,
    /// Why, in words.
    pub text: &'static str,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.key, self.kind.name(), self.text)
    }
}

/// A configuration of Litestream's in our words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The text of a `rhyolite.yml`. Environment variables stand in it as they stood.
    pub text: String,
    /// What it does not say, or says otherwise.
    pub notes: Vec<Note>,
}

/// What is done with a key.
enum Rule {
    /// It is taken as it is.
    Same,
    /// It is left out, and this is said.
    Note(NoteKind, &'static str),
    /// It is refused, for this reason, unless it says `false`, `0` or nothing.
    Refuse(&'static str),
    /// It is handled by itself.
    Special,
}

use NoteKind::{Different, NotNeeded, NotSupported};

fn rule_of_process(key: &str) -> Option<Rule> {
    Some(match key {
        "addr" | "exec" | "shutdown-sync-timeout" => Rule::Same,
        "dbs" | "logging" | "snapshot" | "retention" | "socket" => Rule::Special,
        "mcp-addr" => Rule::Note(NotSupported, "use `addr` for status and metrics"),
        "levels" => Rule::Note(Different, "bundle.interval and merge.interval say when files are put together"),
        "l0-retention" | "l0-retention-check-interval" => {
            Rule::Note(Different, "keep.every-commit says how long every commit stays restorable")
        }
        "validation" | "verify-compaction" => Rule::Note(NotNeeded, "every file is checked by its checksum"),
        "heartbeat-url" | "heartbeat-interval" => {
            Rule::Note(NotSupported, "watch the metrics or /readyz of `addr`; nobody is called")
        }
        "shutdown-sync-interval" => Rule::Note(NotNeeded, "the last upload is tried until shutdown-sync-timeout"),
        "access-key-id" | "secret-access-key" | "region" | "endpoint" | "sync-interval" => Rule::Special,
        other => return rule_of_replica(other),
    })
}

fn rule_of_database(key: &str) -> Option<Rule> {
    Some(match key {
        "monitor-interval" | "checkpoint-interval" | "busy-timeout" | "min-checkpoint-page-count" => Rule::Same,
        "path" | "replica" | "replicas" | "snapshot" | "truncate-page-n" => Rule::Special,
        "meta-path" | "meta-dir" => {
            Rule::Note(Different, "that folder is Litestream's: ours is .NAME-rhyolite beside the database")
        }
        "dir" | "pattern" | "recursive" | "watch" => Rule::Same,
        "max-sync-wal-bytes" => Rule::Note(NotNeeded, "segments are bounded by max-segment-size"),
        "restore-if-db-not-exists" => Rule::Refuse(
            "it is not done by the replicator: run `rhyolite restore STORE -o DB --if-missing --if-backup-exists` before it",
        ),
        _ => return None,
    })
}

fn rule_of_replica(key: &str) -> Option<Rule> {
    Some(match key {
        "bucket" | "region" | "endpoint" | "force-path-style" | "skip-verify" => Rule::Same,
        "access-key-id" | "secret-access-key" | "account-name" | "account-key" | "sync-interval" => Rule::Same,
        "type" | "url" | "path" => Rule::Special,
        "name" => Rule::Note(NotNeeded, "a database has one store"),
        "max-sync-ltx-files" => Rule::Note(NotNeeded, "segments are bounded by max-segment-size"),
        "auto-recover" => Rule::Note(NotNeeded, "whatever is missing locally is compared with the store and mended"),
        "validation-interval" => Rule::Note(NotNeeded, "every file is checked by its checksum"),
        "sign-payload" | "require-content-md5" => Rule::Note(NotNeeded, "requests are signed as the service wants it"),
        "part-size" | "concurrency" => Rule::Note(NotNeeded, "parts and requests are chosen by size"),
        "storage-class" => Rule::Note(NotSupported, "objects get the default class of the bucket, which may cost more"),
        "age" => Rule::Refuse("there is no encryption: the backup would be readable"),
        key if key.starts_with("sse-") => Rule::Refuse("objects would be stored without this encryption"),
        "sas-token" => Rule::Refuse("set AZURE_STORAGE_SAS_TOKEN in the environment instead"),
        "host" | "user" | "password" | "key-path" | "host-key" | "concurrent-writes" => {
            Rule::Refuse("SFTP cannot be translated: write the store as `replica.url` in a rhyolite.yml")
        }
        "webdav-url" | "webdav-username" | "webdav-password" => {
            Rule::Refuse("WebDAV cannot be translated: write the store as `replica.url` in a rhyolite.yml")
        }
        "jwt" | "seed" | "creds" | "nkey" | "username" | "token" | "tls" | "root-cas" | "client-cert"
        | "client-key" | "max-reconnects" | "reconnect-wait" | "timeout" => {
            Rule::Refuse("NATS is not supported as a store")
        }
        _ => return None,
    })
}

/// Keys of the whole file that are defaults of every replica.
const REPLICA_DEFAULTS: [&str; 9] = [
    "bucket",
    "access-key-id",
    "secret-access-key",
    "region",
    "endpoint",
    "force-path-style",
    "skip-verify",
    "account-name",
    "account-key",
];

/// Whether a file is Litestream's, by its name.
pub fn is_litestreams(path: &std::path::Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    matches!(name, "litestream.yml" | "litestream.yaml")
}

/// Translates the text of a `litestream.yml`.
///
/// # Errors
/// It is no YAML, holds a key that is not known, or asks for something that is not done here and that the backup depends on.
pub fn translate(text: &str) -> Result<Translation, ConfigError> {
    let parsed: Value = super::file::parse_as(text)?;
    let file = match parsed {
        Value::Object(file) => file,
        Value::Null => Map::new(),
        _ => return Err(ConfigError::new("it is no mapping of keys")),
    };
    let mut translator = Translator { notes: Vec::new() };
    let translated = translator.file(&file).map_err(ConfigError::new)?;
    let mut text = String::from("# Translated from litestream.yml.\n");
    for note in &translator.notes {
        text.push_str(&format!("# {note}\n"));
    }
    emit(&Value::Object(translated), 0, &mut text);
    Ok(Translation { text, notes: translator.notes })
}

struct Translator {
    notes: Vec<Note>,
}

impl Translator {
    fn note(&mut self, key: impl Into<String>, kind: NoteKind, text: &'static str) {
        self.notes.push(Note { key: key.into(), kind, text });
    }

    /// Follows the rules for the keys of a mapping; those with a rule of their own are left to the caller.
    fn by_rules(
        &mut self,
        place: &str,
        from: &Map<String, Value>,
        rule_of: fn(&str) -> Option<Rule>,
        to: &mut Map<String, Value>,
    ) -> Result<(), String> {
        for (key, value) in from.iter().filter(|(_, value)| !value.is_null()) {
            let full = format!("{place}{key}");
            match rule_of(key).ok_or_else(|| format!("unknown key `{full}`: Litestream ignores it, this does not"))? {
                Rule::Same => drop(to.insert(key.clone(), value.clone())),
                Rule::Note(kind, text) => self.note(full, kind, text),
                Rule::Refuse(_) if is_off(value) => {}
                Rule::Refuse(why) => return Err(format!("{full}: {why}")),
                Rule::Special => {}
            }
        }
        Ok(())
    }

    fn file(&mut self, file: &Map<String, Value>) -> Result<Map<String, Value>, String> {
        let mut to = Map::new();
        self.by_rules("", file, rule_of_process, &mut to)?;
        let mut defaults = Map::new();
        for key in REPLICA_DEFAULTS {
            to.remove(key);
            defaults.extend(file.get(key).map(|value| (key.to_owned(), value.clone())));
        }
        to.extend(file.get("sync-interval").map(|value| ("sync-interval".to_owned(), value.clone())));
        self.logging(file, &mut to)?;
        self.snapshot("", file, &mut to)?;
        self.same_keys("retention", &["enabled"], file, &mut to)?;
        if self.same_keys("socket", &["enabled", "path", "permissions"], file, &mut to)? {
            let text = "what it understands is asked by `rhyolite ctl`, not by Litestream's commands";
            self.note("socket", Different, text);
        }
        let databases = match file.get("dbs") {
            Some(Value::Array(databases)) => databases.as_slice(),
            None | Some(Value::Null) => &[],
            Some(_) => return Err("dbs: it is no list".to_owned()),
        };
        let databases = databases.iter().enumerate().map(|(i, database)| self.database(i, database, &defaults));
        to.insert("dbs".to_owned(), Value::Array(databases.collect::<Result<_, _>>()?));
        Ok(to)
    }

    /// Takes a section as it is; `true` when there is one. A key beyond `keys` is refused.
    fn same_keys(
        &mut self,
        section: &str,
        keys: &[&str],
        from: &Map<String, Value>,
        to: &mut Map<String, Value>,
    ) -> Result<bool, String> {
        let Some(Value::Object(given)) = from.get(section) else { return Ok(false) };
        if let Some(key) = given.keys().find(|key| !keys.contains(&key.as_str())) {
            return Err(format!("unknown key `{section}.{key}`: Litestream ignores it, this does not"));
        }
        to.insert(section.to_owned(), Value::Object(given.clone()));
        Ok(true)
    }

    fn logging(&mut self, file: &Map<String, Value>, to: &mut Map<String, Value>) -> Result<(), String> {
        let Some(Value::Object(logging)) = file.get("logging") else { return Ok(()) };
        let mut ours = Map::new();
        for (key, value) in logging.iter().filter(|(_, value)| !value.is_null()) {
            match (key.as_str(), value.as_str()) {
                ("type", Some("pretty")) => self.note("logging.type", NotSupported, "the log is written as text"),
                ("level" | "type", _) => drop(ours.insert(key.clone(), value.clone())),
                ("stderr", _) => self.note("logging.stderr", NotNeeded, "the log always goes to standard error"),
                ("source", _) => {
                    self.note("logging.source", NotSupported, "lines name what they are about, not the code")
                }
                _ => return Err(format!("unknown key `logging.{key}`: Litestream ignores it, this does not")),
            }
        }
        if !ours.is_empty() {
            to.insert("logging".to_owned(), Value::Object(ours));
        }
        Ok(())
    }

    /// `snapshot.interval` is the same; `snapshot.retention` becomes the time for which every commit stays.
    fn snapshot(&mut self, place: &str, from: &Map<String, Value>, to: &mut Map<String, Value>) -> Result<(), String> {
        let Some(Value::Object(snapshot)) = from.get("snapshot") else { return Ok(()) };
        for (key, value) in snapshot.iter().filter(|(_, value)| !value.is_null()) {
            let (section, ours) = match key.as_str() {
                "interval" => ("snapshot", "interval"),
                "retention" => {
                    let text = "every commit stays for this long (keep.every-commit); beyond it keep.hourly and keep.daily hold";
                    self.note(format!("{place}snapshot.retention"), Different, text);
                    ("keep", "every-commit")
                }
                _ => return Err(format!("unknown key `{place}snapshot.{key}`: Litestream ignores it, this does not")),
            };
            to.insert(section.to_owned(), Value::Object(Map::from_iter([(ours.to_owned(), value.clone())])));
        }
        Ok(())
    }

    fn database(&mut self, index: usize, database: &Value, defaults: &Map<String, Value>) -> Result<Value, String> {
        let place = format!("dbs[{index}].");
        let Value::Object(from) = database else { return Err(format!("dbs[{index}]: it is no mapping of keys")) };
        let mut to = Map::new();
        self.by_rules(&place, from, rule_of_database, &mut to)?;
        match from.get("path").and_then(Value::as_str) {
            Some(path) => {
                let schemes = ["sqlite3://", "sqlite://"];
                let path = schemes.iter().find_map(|scheme| path.strip_prefix(scheme)).unwrap_or(path);
                to.insert("path".to_owned(), Value::from(path));
            }
            None if to.contains_key("dir") => {}
            None => return Err(format!("{place}path is missing")),
        }
        match from.get("truncate-page-n") {
            Some(pages) if is_off(pages) => {
                self.note(
                    format!("{place}truncate-page-n"),
                    Different,
                    "0 stands for the default, as it does in Litestream",
                );
            }
            Some(pages) => drop(to.insert("truncate-page-n".to_owned(), pages.clone())),
            None => {}
        }
        self.snapshot(&place, from, &mut to)?;
        let replica = match (from.get("replica"), from.get("replicas")) {
            (Some(Value::Object(replica)), None) => replica,
            (None, Some(Value::Array(replicas))) => match &replicas[..] {
                [Value::Object(replica)] => replica,
                _ => {
                    return Err(format!("{place}replicas: a database has exactly one store; others would get nothing"));
                }
            },
            _ => return Err(format!("{place}replica is missing")),
        };
        let place = format!("{place}replica.");
        to.insert("replica".to_owned(), self.replica(&place, replica, defaults)?);
        Ok(Value::Object(to))
    }

    fn replica(
        &mut self,
        place: &str,
        from: &Map<String, Value>,
        defaults: &Map<String, Value>,
    ) -> Result<Value, String> {
        let mut to = Map::new();
        self.by_rules(place, from, rule_of_replica, &mut to)?;
        let text = |key: &str| from.get(key).and_then(Value::as_str);
        let url = text("url");
        let scheme = match url {
            Some(url) => url.split_once("://").map_or("file", |(scheme, _)| scheme),
            None => text("type").unwrap_or("file"),
        };
        for (key, value) in
            defaults.iter().filter(|(key, _)| takes(scheme, key) && !(url.is_some() && *key == "bucket"))
        {
            to.entry(key).or_insert_with(|| value.clone());
        }
        if let Some(url) = url {
            let mut url = store_url(url).map_err(|why| format!("{place}url: {why}"))?;
            for (key, option) in URL_OPTIONS {
                if let Some(value) = to.remove(key) {
                    add_option(&mut url, option, &value);
                }
            }
            to.insert("url".to_owned(), Value::from(url));
        } else {
            let kind: Result<ReplicaType, _> = serde_json::from_value(Value::from(scheme));
            kind.map_err(|_| format!("{place}type: {scheme} is not supported as a store"))?;
            to.insert("type".to_owned(), Value::from(scheme));
            let path = text("path").unwrap_or_default().trim_end_matches('/');
            let path = if path.is_empty() { STORE_FOLDER.to_owned() } else { format!("{path}/{STORE_FOLDER}") };
            to.insert("path".to_owned(), Value::from(path));
        }
        let text = "the store is the folder `rhyolite` below it: what Litestream wrote stays as it is";
        self.note(place.trim_end_matches('.').to_owned(), Different, text);
        Ok(Value::Object(to))
    }
}

/// Keys that stand in the URL where there is one, and their names there.
const URL_OPTIONS: [(&str, &str); 5] = [
    ("region", "region"),
    ("endpoint", "endpoint"),
    ("force-path-style", "force-path-style"),
    ("skip-verify", "skip-verify"),
    ("account-name", "account"),
];

/// Appends an option to a URL, unless the URL has it.
fn add_option(url: &mut String, name: &str, value: &Value) {
    let options = url.split_once('?').map_or("", |(_, options)| options);
    if options.split('&').any(|option| option.split('=').next() == Some(name)) {
        return;
    }
    let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let value = value.replace('%', "%25").replace('&', "%26").replace('#', "%23").replace(' ', "%20");
    url.push(if url.contains('?') { '&' } else { '?' });
    url.push_str(&format!("{name}={value}"));
}

/// Whether a replica of this kind has a use for a default.
fn takes(scheme: &str, key: &str) -> bool {
    match scheme {
        "s3" => !key.starts_with("account-"),
        "abs" => key.starts_with("account-"),
        _ => false,
    }
}

/// The store's URL below a replica's.
fn store_url(url: &str) -> Result<String, String> {
    let (place, options) = url.split_once('?').map_or((url, None), |(place, options)| (place, Some(options)));
    if let Some(host) = place.strip_prefix("s3://").map(|rest| rest.split('/').next().unwrap_or(rest)) {
        // Litestream reads the region and the server out of such names.
        let names_a_server =
            host.contains(':') || [".com", ".net", ".io", ".localhost"].iter().any(|end| host.ends_with(end));
        if names_a_server {
            return Err(format!("{host} names a server: write bucket, region and endpoint"));
        }
    }
    let options = options.map(|options| format!("?{options}")).unwrap_or_default();
    Ok(format!("{}/{STORE_FOLDER}{options}", place.trim_end_matches('/')))
}

/// `false`, `0`, and what is empty.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.iter().all(is_off),
        Value::Object(map) => map.values().all(is_off),
        Value::Bool(true) => false,
    }
}

/// Writes YAML in blocks. Texts are quoted as in JSON, which YAML takes.
fn emit(value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                out.push_str(&format!("{pad}{key}:"));
                emit_nested(value, indent + 2, out);
            }
        }
        Value::Array(list) => {
            for item in list {
                let mut nested = String::new();
                emit(item, indent + 2, &mut nested);
                out.push_str(&format!("{pad}- {}", nested.trim_start()));
            }
        }
        scalar => out.push_str(&format!("{pad}{scalar}\n")),
    }
}

fn emit_nested(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) if map.is_empty() => out.push_str(" {}\n"),
        Value::Array(list) if list.is_empty() => out.push_str(" []\n"),
        Value::Object(_) | Value::Array(_) => {
            out.push('\n');
            emit(value, indent, out);
        }
        scalar => out.push_str(&format!(" {scalar}\n")),
    }
}

#[cfg(test)]
mod tests;
