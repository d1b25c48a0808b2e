//! `version` and `completions`.

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
