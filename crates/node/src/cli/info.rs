//! `version`, `completions` and `man`.

use std::path::{Path, PathBuf};

use clap::Args;
use clap_complete::Shell;
use serde::Serialize;

use super::exit::Failure;
use super::output::Output;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  rhyolite version\n  rhyolite version --json")]
pub(super) struct VersionArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
    sqlite: &'static str,
    os: &'static str,
    arch: &'static str,
}

pub(super) fn version(args: &VersionArgs) -> Result<(), Failure> {
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        sqlite: rusqlite::version(),
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
    };
    let mut out = Output::new();
    if args.json {
        out.json(&version)?;
    } else {
        let Version { version, sqlite, os, arch } = version;
        out.line(format!("rhyolite {version} (SQLite {sqlite}, {os} {arch})"))?;
    }
    out.finish()
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  rhyolite completions bash > /etc/bash_completion.d/rhyolite\n  rhyolite completions \
zsh > ~/.zfunc/_rhyolite\n  rhyolite completions fish > ~/.config/fish/completions/rhyolite.fish"
)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn completions(args: &CompletionsArgs, command: &mut clap::Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "rhyolite", &mut script);
    let mut out = Output::new();
    out.bytes(&script)?;
    out.finish()
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  rhyolite man | man -l -\n  rhyolite man --dir /usr/share/man/man1")]
pub(super) struct ManArgs {
    /// Write one page for each command into this folder instead
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

pub(super) fn man(args: &ManArgs, command: clap::Command) -> Result<(), Failure> {
    if let Some(dir) = &args.dir {
        return write_pages(dir, command);
    }
    let mut out = Output::new();
    out.bytes(&page(command)?)?;
    out.finish()
}

fn write_pages(dir: &Path, command: clap::Command) -> Result<(), Failure> {
    let mut waiting = vec![command];
    while let Some(command) = waiting.pop() {
        waiting.extend(command.get_subcommands().filter(|sub| sub.get_name() != "help").map(|sub| {
            let name = format!("{}-{}", command.get_name(), sub.get_name());
            let shown = format!("{} {}", command.get_bin_name().unwrap_or("rhyolite"), sub.get_name());
            sub.clone().name(name).bin_name(shown)
        }));
        let path = dir.join(format!("{}.1", command.get_name()));
        std::fs::write(&path, page(command)?).map_err(|error| Failure::io("write", &path, &error))?;
    }
    Ok(())
}

fn page(command: clap::Command) -> Result<Vec<u8>, Failure> {
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(command.disable_help_subcommand(true)).manual("Rhyolite");
    man.render(&mut page).map_err(|error| Failure::failed(format!("write a man page: {error}")))?;
    Ok(page)
}
