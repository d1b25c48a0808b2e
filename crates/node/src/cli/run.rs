//! `run`: a command beside a node of a cluster, on the primary or where one may be.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::Args;

use super::ctl::{PROMOTE_TIMEOUT, SocketArgs};
use super::exit::Failure;
use crate::cluster::report::NodeReport;
use crate::config::io_text;
use crate::config::units::parse_duration;
use crate::control::Wanted;

/// Run a command beside a node, such as the migrations of a new version.
///
/// With --promote this node becomes the primary first: the present one stops its application, uploads what is left and hands its role to
/// this one. The command takes the place of this process, with its output and its exit status. It is not stopped when the role goes on to
/// another node.
#[derive(Args, Debug)]
#[command(
    after_help = "Exit statuses: those of the command; 0 as well with --if-candidate where it was not run; 1 this node did not become the primary, or the command cannot be started.\n\n\
Examples:\n  rhyolite run --promote --if-candidate -- ./app migrate\n  rhyolite run --promote --timeout 1m --socket ./a.sock -- sqlite3 ./a/app.db 'CREATE TABLE t(x)'"
)]
pub(super) struct RunArgs {
    /// Let this node become the primary first
    #[arg(long)]
    promote: bool,
    /// Where this node never becomes the primary, run nothing and succeed
    #[arg(long)]
    if_candidate: bool,
    /// How long --promote may take (30s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "promote")]
    timeout: Option<Duration>,
    /// Control socket of the node [default: /var/run/rhyolite.sock]
    #[arg(long, value_name = "PATH", env = "RHYOLITE_SOCKET", hide_env_values = true)]
    socket: Option<PathBuf>,
    /// The command, and what it is told
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Does not come back when the command runs.
pub(super) fn run(args: &RunArgs) -> Result<(), Failure> {
    let socket = SocketArgs::at(args.socket.clone());
    let node: NodeReport = socket.ask("GET", "/node", &Wanted::default())?;
    let (program, rest) = args.command.split_first().expect("there is one at least");
    if args.if_candidate && !node.candidate {
        // When standard error is gone there is nobody to be told.
        let _ = writeln!(std::io::stderr(), "rhyolite: not run, as this node is no candidate: {}", program.display());
        return Ok(());
    }
    if args.promote {
        socket.promote(args.timeout.unwrap_or(PROMOTE_TIMEOUT), false)?;
    }
    let error = Command::new(program).args(rest).exec();
    Err(Failure::failed(format!("cannot run {}: {}", program.display(), io_text(&error))))
}
