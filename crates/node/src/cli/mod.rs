//! The command line: what the user wrote, and how it ends.
//!
//! Invariants:
//! 1. A command that fails prints exactly one line to standard error and nothing is left half done.
//! 2. Exit statuses are those of [`exit::Status`], or those of the application under `--exec`.
//! 3. Standard output carries only what was asked for; progress, colour and log lines go to standard error.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

mod adopt;
mod branch;
mod cluster;
mod compact;
mod config;
mod ctl;
#[cfg(test)]
mod docs_tests;
mod doctor;
pub mod exit;
mod export;
mod follow;
mod foreign;
mod import;
mod info;
mod log;
mod ltx;
#[cfg(target_os = "linux")]
mod mount;
mod node;
pub mod output;
mod pin;
mod plan;
mod policy;
mod probe;
mod proxy;
mod prune;
mod replicate;
mod restore;
mod restore_all;
mod run;
mod status;
mod store;
mod verify;
pub mod when;

use crate::cluster::guard;
use exit::{Failure, Status};

/// Replicate SQLite databases to object storage, and restore any transaction of them.
#[derive(Debug, Parser)]
#[command(name = "rhyolite", version, max_term_width = 100, propagate_version = true)]
#[command(after_help = "Exit statuses: 0 done, 1 failed, 2 wrong usage or configuration, 3 damage found, 4 another \
database's history, 5 no such backup or restore point, 6 stopped before everything was durable.\n\nExamples:\n  \
rhyolite replicate app.db s3://bucket/app\n  rhyolite restore s3://bucket/app -o copy.db --at \"10m ago\"\n  rhyolite \
log s3://bucket/app")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Replicate(Box<replicate::ReplicateArgs>),
    #[cfg(target_os = "linux")]
    Mount(Box<mount::MountArgs>),
    Node(Box<node::NodeArgs>),
    Run(run::RunArgs),
    /// Look at what a cluster has gone on without
    #[command(subcommand)]
    Branch(branch::BranchCommand),
    Restore(restore::RestoreArgs),
    Follow(follow::FollowArgs),
    Status(status::StatusArgs),
    Log(log::LogArgs),
    Sync(ctl::SyncArgs),
    Wait(ctl::WaitArgs),
    /// Ask a running `replicate` by its control socket
    #[command(subcommand)]
    Ctl(ctl::CtlCommand),
    Verify(verify::VerifyArgs),
    Pin(pin::PinArgs),
    Compact(compact::CompactArgs),
    Prune(prune::PruneArgs),
    Plan(plan::PlanArgs),
    Doctor(doctor::DoctorArgs),
    Adopt(adopt::AdoptArgs),
    Export(export::ExportArgs),
    Import(import::ImportArgs),
    Config(config::ConfigArgs),
    Probe(probe::ProbeArgs),
    /// Look into LTX files, check them, apply them
    #[command(subcommand)]
    Ltx(ltx::LtxCommand),
    /// Print the version
    Version(info::VersionArgs),
    /// Print a completion script for a shell
    Completions(info::CompletionsArgs),
    /// Print the manual, or write one page for each command
    Man(info::ManArgs),
}

/// The process from its first to its last instruction.
pub fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|first| first == guard::ARGUMENT) {
        return guard::main(std::env::args_os().skip(2).collect());
    }
    crate::memory::share_heaps();
    one_line_panics();
    let arguments = std::env::args_os().map(double_dash(&Cli::command()));
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return argument_error(&error),
    };
    match std::panic::catch_unwind(|| run(cli)) {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err(failure)) => {
            print_failure(&failure);
            ExitCode::from(failure.status.code())
        }
        // The hook has printed the line.
        Err(_) => ExitCode::from(Status::Internal.code()),
    }
}

/// Takes `-exec` for `--exec`, as Litestream's users write it, for every flag that there is.
fn double_dash(command: &clap::Command) -> impl Fn(OsString) -> OsString + use<> {
    fn add(command: &clap::Command, known: &mut HashSet<String>) {
        known.extend(command.get_arguments().filter_map(|a| a.get_long()).map(|long| format!("-{long}")));
        command.get_subcommands().for_each(|sub| add(sub, known));
    }
    let mut known = HashSet::new();
    add(command, &mut known);
    move |argument| {
        let text = argument.to_str().unwrap_or_default();
        let flag = text.split_once('=').map_or(text, |(flag, _)| flag);
        if known.contains(flag) { OsString::from(format!("-{text}")) } else { argument }
    }
}

fn run(cli: Cli) -> Result<u8, Failure> {
    match cli.command {
        Command::Replicate(args) => return replicate::run(&args),
        #[cfg(target_os = "linux")]
        Command::Mount(args) => return mount::run(&args),
        Command::Node(args) => return node::run(&args),
        Command::Run(args) => return run::run(&args),
        Command::Branch(command) => branch::run(command)?,
        Command::Restore(args) => restore::run(&args)?,
        Command::Follow(args) => follow::run(&args)?,
        Command::Status(args) => status::run(&args)?,
        Command::Log(args) => log::run(&args)?,
        Command::Sync(args) => ctl::sync(&args)?,
        Command::Wait(args) => ctl::wait(&args)?,
        Command::Ctl(command) => ctl::run(command)?,
        Command::Verify(args) => verify::run(&args)?,
        Command::Pin(args) => pin::run(&args)?,
        Command::Compact(args) => compact::run(&args)?,
        Command::Prune(args) => prune::run(&args)?,
        Command::Plan(args) => plan::run(&args)?,
        Command::Doctor(args) => doctor::run(&args)?,
        Command::Adopt(args) => adopt::run(&args)?,
        Command::Export(args) => export::run(&args)?,
        Command::Import(args) => import::run(&args)?,
        Command::Config(args) => config::run(&args)?,
        Command::Probe(args) => probe::run(&args)?,
        Command::Ltx(command) => ltx::run(command)?,
        Command::Version(args) => info::version(&args)?,
        Command::Completions(args) => info::completions(&args, &mut Cli::command())?,
        Command::Man(args) => info::man(&args, Cli::command())?,
    }
    Ok(Status::Ok.code())
}

fn print_failure(failure: &Failure) {
    if !failure.message.is_empty() {
        // When standard error is gone there is nobody left to tell.
        let _ = writeln!(std::io::stderr(), "rhyolite: {failure}");
    }
}

/// Help and version go to standard output as clap made them; an error becomes one line.
fn argument_error(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Status::Usage.code()))
        }
        _ => {
            print_failure(&Failure::usage(argument_message(&error.render().to_string())));
            ExitCode::from(Status::Usage.code())
        }
    }
}

/// The first paragraph and the tips of clap's message, on one line, with a way to the help.
fn argument_message(text: &str) -> String {
    let mut paragraphs = text.split("\n\n");
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let first = paragraphs.next().unwrap_or_default();
    let mut message = one_line(first.strip_prefix("error: ").unwrap_or(first)).trim_end_matches(':').to_owned();
    for tip in paragraphs.filter_map(|p| p.trim_start().strip_prefix("tip: ")) {
        message.push_str("; ");
        message.push_str(&one_line(tip));
    }
    message + " (--help shows how)"
}

/// A fault of ours is one line too, and says what to do.
fn one_line_panics() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied().map(str::to_owned);
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
        let place = info.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
        print_failure(&Failure::new(Status::Internal, format!("internal error{place}: {text}; please report this")));
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition_is_sound() {
        Cli::command().debug_assert();
    }

    fn check(arguments: &[&str], expected: &str) {
        let error = Cli::try_parse_from(arguments).expect_err("wrong arguments");
        assert_eq!(argument_message(&error.render().to_string()), expected);
    }

    #[test]
    fn one_dash_is_enough_for_a_flag() {
        let double = double_dash(&Cli::command());
        for (written, read) in [
            ("-exec", "--exec"),
            ("-sync-interval=1s", "--sync-interval=1s"),
            ("--exec", "--exec"),
            ("-o", "-o"),
            ("-", "-"),
            ("-oexec", "-oexec"),
            ("exec", "exec"),
        ] {
            assert_eq!(double(written.into()), read, "{written}");
        }
    }

    #[test]
    fn argument_errors_are_one_line() {
        check(
            &["rhyolite", "version", "--jsn"],
            "unexpected argument '--jsn' found; a similar argument exists: '--json' (--help shows how)",
        );
        check(
            &["rhyolite", "statsu"],
            "unrecognized subcommand 'statsu'; a similar subcommand exists: 'status' (--help shows how)",
        );
        check(
            &["rhyolite", "ltx", "dump"],
            "the following required arguments were not provided: <FILE>... (--help shows how)",
        );
    }
}
