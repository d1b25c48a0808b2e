//! Which kinds of worlds there are, and which of them a run has.

use crate::args::Args;
use crate::cluster::setting::{Journal, Safety, Setting};
use crate::error::{Outcome, fail};
use crate::rhyolite::Rhyolite;
use crate::rng::Rng;
use crate::torture_mount::find_obstacle;

/// Upload intervals where other nodes count: with the longest only they have most of what is safe.
const SYNC_INTERVALS: [&str; 3] = ["100ms", "2s", "1h"];

/// One kind of world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    safety: Safety,
    mount: Option<Journal>,
    is_forwarded: bool,
    is_pushed: bool,
}

/// All of them, in turn. Any two neighbours differ in what counts as safe or in where the databases are. On mounts no other node counts: the program refuses
/// `--durability` there.
const ALL: [Kind; 7] = [
    kind(Safety::Store, None, false),
    kind(Safety::Replica, None, false),
    kind(Safety::Store, Some(Journal::Wal), false),
    kind(Safety::Quorum, None, false),
    kind(Safety::Store, Some(Journal::Delete), false),
    kind(Safety::Replica, None, true),
    Kind { is_forwarded: true, ..kind(Safety::Store, Some(Journal::Wal), false) },
];

const fn kind(safety: Safety, mount: Option<Journal>, is_pushed: bool) -> Kind {
    Kind { safety, mount, is_forwarded: false, is_pushed }
}

impl Kind {
    /// How it is counted.
    pub(super) fn name(self) -> &'static str {
        match (self.safety, self.mount, self.is_pushed) {
            (_, _, true) => "world with a node that is pushed to",
            (_, Some(_), _) if self.is_forwarded => "world of mounts that forward",
            (_, Some(_), _) => "world of mounts",
            (Safety::Store, None, _) => "world of folders",
            (Safety::Replica, None, _) => "world with --durability replica",
            (Safety::Quorum, None, _) => "world with --durability quorum",
        }
    }

    /// A world of this kind.
    pub(super) fn setting(self, rng: &mut Rng) -> Setting {
        // Three others, of which two have each commit and two are asked: it is enough to ask some of them.
        let candidates = if self.safety == Safety::Quorum { 4 } else { 3 };
        let Self { safety, mount, is_forwarded, is_pushed } = self;
        let sync_interval = if safety == Safety::Store { "100ms" } else { rng.pick(&SYNC_INTERVALS) };
        Setting { candidates, safety, mount, is_forwarded, is_pushed, sync_interval }
    }
}

/// What a command line asks for; of what it does not name there is everything.
#[derive(Debug)]
pub(super) struct Wanted {
    safety: Option<Safety>,
    mount: Option<Journal>,
    is_folder: bool,
    is_forwarded: bool,
    is_pushed: bool,
}

impl Wanted {
    /// Takes `--durability store|replica|quorum`, `--mount wal|delete` or `--folder`, `--forward`, and `--push`.
    pub(super) fn take(args: &mut Args) -> Outcome<Self> {
        let (safety, mount) = (args.option("--durability")?, args.option("--mount")?);
        let (is_folder, is_forwarded) = (args.switch("--folder"), args.switch("--forward"));
        let this = Self { safety, mount, is_folder, is_forwarded, is_pushed: args.switch("--push") };
        if this.is_folder && this.mount.is_some() {
            return fail("--folder or --mount");
        }
        if this.mount.is_some() && this.safety.is_some_and(|safety| safety != Safety::Store) {
            return fail("--durability is refused on a mount");
        }
        Ok(this)
    }

    fn has(&self, kind: Kind) -> bool {
        self.safety.is_none_or(|safety| safety == kind.safety)
            && self.mount.is_none_or(|mount| Some(mount) == kind.mount)
            && !(self.is_folder && kind.mount.is_some())
            && kind.is_pushed >= self.is_pushed
            && kind.is_forwarded >= self.is_forwarded
    }

    /// The kinds of worlds of a run, in turn. Where nothing can be mounted there are no mounts, and that is said; `None` when nothing is left. `RHYOLITE_REQUIRE_FUSE`
    /// makes an error of that.
    pub(super) fn kinds(&self, rhyolite: &Rhyolite) -> Outcome<Option<Vec<Kind>>> {
        let mut kinds: Vec<Kind> = ALL.into_iter().filter(|kind| self.has(*kind)).collect();
        if kinds.is_empty() {
            // A combination that is not among those that take turns.
            let Self { safety, mount, is_forwarded, is_pushed, .. } = *self;
            kinds.push(Kind { safety: safety.unwrap_or(Safety::Store), mount, is_forwarded, is_pushed });
        }
        if kinds.iter().any(|kind| kind.mount.is_some())
            && let Some(reason) = find_obstacle(rhyolite)?
        {
            if std::env::var_os("RHYOLITE_REQUIRE_FUSE").is_some() {
                return fail(format!("nothing can be mounted here: {reason}"));
            }
            println!("SKIPPED: worlds of mounts: nothing can be mounted here: {reason}");
            kinds.retain(|kind| kind.mount.is_none());
        }
        Ok(Some(kinds).filter(|kinds| !kinds.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(line: &str) -> Outcome<Wanted> {
        Wanted::take(&mut Args::new(line.split_whitespace().map(str::to_owned)))
    }

    #[test]
    fn a_command_line_chooses_among_the_kinds() {
        let count = |line: &str| ALL.into_iter().filter(|kind| wanted(line).unwrap().has(*kind)).count();
        assert_eq!((count(""), count("--durability replica"), count("--mount delete")), (7, 2, 1));
        assert_eq!((count("--mount wal"), count("--forward")), (2, 1));
        assert_eq!((count("--folder"), count("--push"), count("--folder --durability quorum")), (4, 1, 1));
        assert_eq!(count("--push --mount wal"), 0, "none of those that take turns");
        assert!(wanted("--folder --mount wal").is_err() && wanted("--durability disk").is_err());
        assert!(wanted("--mount wal --durability quorum").is_err());
    }

    #[test]
    fn neighbours_differ_in_more_than_a_journal() {
        for (at, kind) in ALL.iter().enumerate() {
            let next = ALL[(at + 1) % ALL.len()];
            assert!(kind.safety != next.safety || kind.mount.is_some() != next.mount.is_some(), "{at}");
        }
    }
}
