//! The user's documentation against the code: every command, flag, key, metric and status is documented, and nothing else.

use std::collections::BTreeSet;

use clap::{Arg, Command, CommandFactory};
use serde::de::value::Error as ValueError;
use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};

use super::Cli;
use super::exit::Status;
use crate::config::file::{
    ClusterFile, ConfigFile, DatabaseFile, DrillFile, IntervalFile, KeepFile, LeaseFile, LoggingFile, NodeFile,
    ProxyFile, ReplicaFile, RetentionFile, SocketFile, TlsFile,
};
use crate::observe::metrics::{BUILD_INFO, METRICS};
use crate::status::{DiffReason, State};

const COMMANDS: &str = include_str!("../../../../docs/user/commands.md");
const CONFIGURATION: &str = include_str!("../../../../docs/user/configuration.md");
const METRICS_DOC: &str = include_str!("../../../../docs/user/metrics.md");
const EXIT_STATUS: &str = include_str!("../../../../docs/user/exit-status.md");

/// Example deployments, by the command that they run.
const DEPLOYMENTS: [(&str, &str); 6] = [
    ("replicate", include_str!("../../../../deploy/systemd/rhyolite.service")),
    ("replicate", include_str!("../../../../deploy/kubernetes/app.yaml")),
    ("node", include_str!("../../../../deploy/systemd/rhyolite-node@.service")),
    ("node", include_str!("../../../../deploy/docker/cluster.yaml")),
    ("node", include_str!("../../../../deploy/kubernetes/cluster.yaml")),
    ("node", include_str!("../../../../deploy/fly/fly.toml")),
];
/// The configuration of the unit that has one.
const NODE_FILE: &str = include_str!("../../../../deploy/systemd/rhyolite-node.yml");
/// What other programs are told there.
const OPTIONS_OF_OTHERS: [&str; 7] = ["now", "from", "port", "db", "fail", "silent", "if-missing"];

/// First cells of all table rows, without the backquotes; cells without them are headings or rulers.
fn first_cells(text: &str) -> BTreeSet<String> {
    let cell = |line: &str| {
        let (cell, _) = line.strip_prefix("| `")?.split_once("` |")?;
        Some(cell.to_owned())
    };
    text.lines().filter_map(cell).collect()
}

/// `-o, --output <PATH>`, `<STORE>`: how an argument is written.
fn written(argument: &Arg) -> String {
    let value = argument.get_value_names().filter(|_| argument.get_action().takes_values());
    let value = value.and_then(|names| names.first()).map(|name| name.to_string());
    let short = argument.get_short().map(|c| format!("-{c}, ")).unwrap_or_default();
    match (argument.get_long(), value) {
        (Some(long), Some(value)) => format!("{short}--{long} {value}"),
        (Some(long), None) => format!("{short}--{long}"),
        (None, value) => value.expect("a positional argument has a name"),
    }
}

fn table(command: &Command) -> String {
    let mut text = String::from("| argument | meaning |\n| --- | --- |\n");
    let is_shown = |a: &&Arg| !["help", "version"].contains(&a.get_id().as_str()) && !a.is_hide_set();
    for argument in command.get_arguments().filter(is_shown) {
        let help = argument.get_help().unwrap_or_else(|| panic!("{} has no help", argument.get_id()));
        let values: Vec<_> = argument.get_possible_values().iter().map(|v| v.get_name().to_owned()).collect();
        let is_bool = values.iter().all(|v| v == "true" || v == "false");
        let values = if is_bool { String::new() } else { format!(": {}", values.join(", ")) };
        let env = argument.get_env().map(|e| format!(" (or `{}`)", e.to_string_lossy())).unwrap_or_default();
        text.push_str(&format!("| `{}` | {help}{values}{env} |\n", written(argument)));
    }
    text
}

fn leaves(command: &Command, path: &str, out: &mut Vec<(String, Command)>) {
    for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
        let name = format!("{path} {}", sub.get_name());
        if sub.has_subcommands() { leaves(sub, &name, out) } else { out.push((name, sub.clone())) }
    }
}

#[test]
fn example_deployments_use_options_that_there_are() {
    let all = Cli::command();
    for (command, text) in DEPLOYMENTS {
        let known: BTreeSet<&str> =
            all.find_subcommand(command).unwrap().get_arguments().filter_map(Arg::get_long).collect();
        let words = text.split(|c: char| c.is_whitespace() || "\"'[],".contains(c));
        let options: BTreeSet<&str> = words
            .filter_map(|word| word.strip_prefix("--"))
            .map(|option| option.split('=').next().unwrap_or(option))
            .filter(|option| !option.is_empty() && *option != "-")
            .collect();
        assert!(!options.is_empty(), "{command}: {text}");
        for option in options.iter().filter(|option| !OPTIONS_OF_OTHERS.contains(option)) {
            let is_known = known.contains(option) || (command == "replicate" && *option == "if-backup-exists");
            assert!(is_known, "{command} has no --{option}: {text}");
        }
    }
}

#[test]
fn the_example_of_a_node_is_a_configuration_of_one() {
    let config = crate::config::file::parse(NODE_FILE).unwrap();
    let node = config.node.unwrap();
    assert!(node.dir.is_some() && node.store.is_some() && node.listen.is_some() && node.proxy.target.is_some());
}

#[test]
fn every_command_and_flag_is_documented_in_the_words_of_its_help() {
    let mut commands = Vec::new();
    leaves(&Cli::command(), "rhyolite", &mut commands);
    for (name, command) in &commands {
        let heading = format!("\n## {name}\n");
        let (_, section) = COMMANDS.split_once(&heading).unwrap_or_else(|| panic!("no section {heading:?}"));
        let section = section.split("\n## ").next().expect("split gives one");
        let expected = table(command);
        assert!(section.contains(&expected), "the table of `{name}` must be:\n\n{expected}");
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(after.contains("Example"), "{name} has no example in its help");
    }
    let headings = COMMANDS.lines().filter_map(|l| l.strip_prefix("## rhyolite")).count();
    assert_eq!(headings, commands.len(), "a section without a command");
}

/// Finds out the names of a struct's fields by asking it to deserialize itself.
struct Fields<'a>(&'a mut Vec<&'static str>);

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = ValueError;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, ValueError> {
        Err(serde::de::Error::custom("not a struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, ValueError> {
        self.0.extend(fields);
        Err(serde::de::Error::custom("only asked"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn fields<T: for<'de> Deserialize<'de>>() -> Vec<&'static str> {
    let mut names = Vec::new();
    let asked = T::deserialize(Fields(&mut names));
    assert!(asked.is_err());
    names
}

#[test]
fn every_key_is_documented() {
    let sections = [
        ("logging", fields::<LoggingFile>()),
        ("socket", fields::<SocketFile>()),
        ("cluster", fields::<ClusterFile>()),
        ("cluster.tls", fields::<TlsFile>()),
        ("node", fields::<NodeFile>()),
        ("node.proxy", fields::<ProxyFile>()),
        ("bundle", fields::<IntervalFile>()),
        ("merge", fields::<IntervalFile>()),
        ("snapshot", fields::<IntervalFile>()),
        ("keep", fields::<KeepFile>()),
        ("lease", fields::<LeaseFile>()),
        ("retention", fields::<RetentionFile>()),
        ("drill", fields::<DrillFile>()),
    ];
    let mut keys = BTreeSet::new();
    let mut add = |prefix: &str, names: Vec<&str>| {
        let mut names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        while let Some(name) = names.pop() {
            match sections.iter().find(|(section, _)| *section == name) {
                Some((section, inner)) => names.extend(inner.iter().map(|k| format!("{section}.{k}"))),
                None => drop(keys.insert(format!("{prefix}{name}"))),
            }
        }
    };
    let top = fields::<ConfigFile>();
    let database = fields::<DatabaseFile>();
    add("", top.iter().copied().filter(|name| *name != "dbs").collect());
    // What may stand in both places is documented once.
    let own = database.iter().copied().filter(|name| *name != "replica" && !top.contains(name));
    add("dbs[].", own.collect());
    add("dbs[].replica.", fields::<ReplicaFile>());
    assert_eq!(first_cells(CONFIGURATION), keys);
}

#[test]
fn every_metric_is_documented_in_the_words_of_its_help() {
    let rows = METRICS.iter().map(|metric| {
        let labels: Vec<_> = metric.labels().iter().map(|l| format!("`{l}`")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!(" {}", labels.join(", ")) };
        format!("| `{}` | {} |{labels} | {} |", metric.name, metric.kind.name(), metric.help)
    });
    for row in rows {
        assert!(METRICS_DOC.contains(&row), "docs/user/metrics.md must have the row\n{row}");
    }
    let mut names: BTreeSet<String> = METRICS.iter().map(|m| m.name.to_owned()).collect();
    names.insert(BUILD_INFO.to_owned());
    names.extend(State::NAMES.map(str::to_owned));
    names.extend(DiffReason::ALL.map(|r| r.name().to_owned()));
    names.extend(["/metrics", "/status", "/events", "/healthz", "/readyz"].map(str::to_owned));
    assert_eq!(first_cells(METRICS_DOC), names);
}

#[test]
fn every_exit_status_is_documented() {
    let row = |status: Status| format!("| {} | {status:?} | ", status.code());
    for status in Status::ALL {
        assert!(EXIT_STATUS.contains(&row(status)), "docs/user/exit-status.md lacks {status:?}");
    }
    let rows = EXIT_STATUS.lines().filter(|l| l.starts_with("| ") && !l.contains("---")).count();
    assert_eq!(rows, Status::ALL.len() + 1, "a row without a status");
}
