//! Size of the released binary, and with `--clean-build` the time to build it from nothing.

use std::process::Command;
use std::time::Instant;

use xtask::args::Args;
use xtask::error::{Context, Outcome, fail};

use crate::lab::Lab;
use crate::table::Row;

/// Looks, and builds when asked.
pub(crate) fn run(lab: &Lab, args: &mut Args) -> Outcome<Vec<Row>> {
    let bytes = std::fs::metadata(&lab.binary).context("size of the binary")?.len();
    let mut rows =
        vec![row("size of the binary", format!("{:.1} MB", bytes as f64 / 1e6), "release profile, stripped")];
    if args.switch("--clean-build") {
        let target = lab.folder("clean-build")?;
        println!("building from nothing ...");
        let began = Instant::now();
        let status = Command::new("cargo")
            .args(["build", "--quiet", "--release", "--package", "rhyolite-node"])
            .env("CARGO_TARGET_DIR", &target)
            .current_dir(&lab.root)
            .status()
            .context("start cargo")?;
        if !status.success() {
            return fail("the build failed");
        }
        let seconds = began.elapsed().as_secs();
        rows.push(row(
            "clean build",
            format!("{seconds} s"),
            "cargo build --release -p rhyolite-node, sources at hand",
        ));
    }
    Ok(rows)
}

fn row(what: &str, figure: String, detail: &str) -> Row {
    Row { what: what.to_owned(), figure, goal: "", met: None, detail: detail.to_owned() }
}
