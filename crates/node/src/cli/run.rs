//! `run`: a command beside a node of a cluster, on the primary or where one may be, or on a replica that forwards what it writes.

mod lock;

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::Args;
use rhyolite_logic::role::Role;

use super::ctl::{PROMOTE_TIMEOUT, SocketArgs, known_path};
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
///
/// With --write-lock the roles stay as they are, and a replica writes: it borrows the write lock of one database from the primary and makes a
/// copy of its own file, whose path stands for {} in the command and is in RHYOLITE_DB. What the command has changed in the copy when it ends with 0
/// becomes one transaction of the primary, and has come back to this node when `run` ends; when it ends otherwise nothing is committed. Meanwhile nobody else
/// writes to that database. On the primary the command gets the database itself.
#[derive(Args, Debug)]
#[command(
    after_help = "Exit statuses: those of the command; 0 as well with --if-candidate where it was not run; 1 this node did not become the primary, the command cannot be started, or what it changed was not committed; 7 nobody knows whether it was.\n\n\
Examples:\n  rhyolite run --promote --if-candidate -- ./app migrate\n  rhyolite run --write-lock ./b/app.db --socket ./b.sock -- sqlite3 {} 'CREATE TABLE t(x)'\n  rhyolite run --promote --timeout 1m --socket ./a.sock -- sqlite3 ./a/app.db 'CREATE TABLE t(x)'"
)]
pub(super) struct RunArgs {
    /// Let this node become the primary first
    #[arg(long)]
    promote: bool,
    /// Where this node never becomes the primary, run nothing and succeed
    #[arg(long)]
    if_candidate: bool,
    /// On a replica, let the command change this database of the node, and the primary commit it
    #[arg(long, value_name = "DB", conflicts_with = "promote")]
    write_lock: Option<PathBuf>,
    /// How long --promote may take, or how long --write-lock waits for other writers (30s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// How long the command may hold the write lock (1m)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "write_lock")]
    hold: Option<Duration>,
    /// Control socket of the node [default: /var/run/rhyolite.sock]
    #[arg(long, value_name = "PATH", env = "RHYOLITE_SOCKET", hide_env_values = true)]
    socket: Option<PathBuf>,
    /// The command, and what it is told
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Does not come back when the command takes the place of this process.
pub(super) fn run(args: &RunArgs) -> Result<u8, Failure> {
    if args.timeout.is_some() && !args.promote && args.write_lock.is_none() {
        return Err(Failure::usage("--timeout is for --promote or --write-lock"));
    }
    let socket = SocketArgs::at(args.socket.clone());
    let node: NodeReport = socket.ask("GET", "/node", &Wanted::default())?;
    if args.if_candidate && !node.candidate {
        // When standard error is gone there is nobody to be told.
        let program = args.command[0].display();
        let _ = writeln!(std::io::stderr(), "rhyolite: not run, as this node is no candidate: {program}");
        return Ok(0);
    }
    let mut variable = None;
    let words = match &args.write_lock {
        Some(database) => {
            let database = known_path(database)?;
            if !node.is(Role::Primary) {
                let times = (args.timeout.unwrap_or(lock::WAIT), args.hold.unwrap_or(lock::HOLD));
                return lock::run(&socket, &database, &args.command, times);
            }
            let words = lock::words(&args.command, &database);
            variable = Some((lock::VARIABLE, database));
            words
        }
        None => args.command.clone(),
    };
    if args.promote {
        socket.promote(args.timeout.unwrap_or(PROMOTE_TIMEOUT), false)?;
    }
    let (program, rest) = words.split_first().expect("there is one at least");
    let error = Command::new(program).args(rest).envs(variable).exec();
    Err(Failure::failed(format!("cannot run {}: {}", program.display(), io_text(&error))))
}
