//! What a node is asked while it runs: to have something captured, and to go on under other settings.

use std::time::Duration;

use tokio::sync::oneshot;

use super::Node;
use crate::config::DatabaseConfig;
use crate::config::folder::FolderConfig;
use crate::supervise::control::Command;
use crate::supervise::reload::Reloaded;

/// How long requests that the application has are waited for before it is told to stop.
const FLIGHT_MAX: Duration = Duration::from_millis(500);

impl Node {
    pub(super) fn take_command(&mut self, command: Command) {
        match command {
            Command::Reload(wanted, reply) => self.take_settings(wanted.1, reply),
            other => self.pass_on(other),
        }
    }

    /// Lets the requests finish that the application has. They wait until what they have committed is captured, which is asked for here: so that is passed on meanwhile.
    pub(super) async fn finish_flight(&mut self) {
        let flight = self.config.flight.clone();
        let mut finished = std::pin::pin!(flight.finished(FLIGHT_MAX));
        let cut = loop {
            tokio::select! {
                cut = &mut finished => break cut,
                Some(command) = self.commands.recv() => self.take_command(command),
            }
        };
        if cut > 0 {
            tracing::info!("the application is told to stop with {cut} requests unanswered after {FLIGHT_MAX:?}");
        }
    }

    /// Requests about databases are for capture, as long as there is any.
    fn pass_on(&self, command: Command) {
        let refused = || format!("this node is {}: nothing is captured here", self.machine.role().name());
        match (command, &self.capture) {
            (command @ Command::Sync(..), Some(capture)) => drop(capture.commands.try_send(command)),
            (Command::Sync(_, _, reply), None) => drop(reply.send(Err(refused()))),
            (Command::Add(_, reply), _) | (Command::Remove(_, reply), _) => {
                drop(reply.send(Err("the databases of a node are those in its folder".to_owned())));
            }
            // The caller has taken it.
            (Command::Reload(_, reply), _) => drop(reply),
        }
    }

    /// Replicates as it is said from now on: at once where something is captured, otherwise when this node is the primary again.
    fn take_settings(&mut self, folders: Vec<FolderConfig>, reply: oneshot::Sender<Reloaded>) {
        let Some(folder) = folders.into_iter().next() else { return };
        let folder = match &self.config.mount {
            None => folder,
            // It stays where it is mounted, and its state folders behind that.
            Some(_) => {
                let own = self.config.folder.clone();
                let template = DatabaseConfig { path: own.template.path.clone(), ..folder.template };
                FolderConfig { template, ..own }
            }
        };
        let changed = usize::from(self.config.folder != folder);
        // Whoever waits for the answer is told by the end of the channel when it cannot be given: then nothing is taken over.
        let turn = self.capture.as_ref().map(|capture| capture.commands.try_reserve()).transpose();
        let Ok(turn) = turn else { return };
        self.config.folder = folder.clone();
        match turn {
            Some(turn) => turn.send(Command::Reload(Box::new((Vec::new(), vec![folder])), reply)),
            None => drop(reply.send(Reloaded { changed, ..Reloaded::default() })),
        }
    }
}
