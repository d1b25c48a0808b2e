//! `cargo xtask`: everything that is done to the project rather than by it.
//!
//! One command each for the checks (`ci`, `tidy`), the demonstration (`demo`), the torture tests (`torture`, `torture-mount`, `torture-cluster`), the faults that
//! need a disk of their own (`faults`) and the benchmarks (`bench`). Each prints what it does in plain words and ends with a
//! status other than 0 when anything differs from what it should be.

pub mod args;
mod bench;
mod ci;
pub mod cluster;
mod deb;
mod demo;
pub mod error;
mod faults;
mod fuse;
mod large;
mod limits;
mod oracle;
mod power;
pub mod process;
mod report;
pub mod rhyolite;
pub mod rng;
mod s3_server;
pub mod scratch;
mod suites;
mod test;
mod tidy;
mod torture;
mod torture_cluster;
mod torture_mount;
mod writer;

use crate::args::Args;
use crate::error::Outcome;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  ci        every check: format, tidy, clippy, tests, demo, torture and so on; or only the steps named
  test      the tests of the whole workspace
  demo      replicate a database to a folder while it is written, kill, restore, compare
  faults    disks that fill up and servers that hang, and back again
  large     databases that grow past 1 GiB while they are replicated (3 GB under the temporary folder)
  torture   real processes, kill -9 and worse, restores compared: --minutes N | --seconds N, --cycles N,
            --seed S, --lanes N, --store dir|s3, --journal wal|delete
  torture-mount
            the same for a mount, in every journal mode, every restore point looked at (needs FUSE): --minutes N | --seconds N,
            --cycles N, --seed S, --lanes N, --allow-folded
  torture-cluster
            three nodes with proxies that are killed, frozen and cut off while clients write and read: --minutes N | --seconds N, --cycles N,
            --seed S, --lanes N; worlds of all kinds take turns, or only those with --durability store|replica|quorum,
            --mount wal|delete | --folder, --push (a mount needs FUSE)
  power-cut databases and state on a disk that loses what was not synced, beside the application and on a mount (needs root, FUSE, ext4):
            --minutes N | --seconds N, --cycles N, --seed S
  suites    a selection of the suites of others on a mount, and drivers of four languages (docs/suites.md); needs FUSE, and what
            crates/node/tests/suites/build.sh makes
  bench     measure and rewrite the table in docs/benchmarks.md; or only the benchmarks named
  deb       a Debian package of the released program in target/debian; --bin PATH, --out FOLDER
  tidy      layering, purity, file sizes and other rules that the compiler does not check
";

/// Does what `command` says.
pub fn run(command: &str, args: Args) -> Outcome {
    match command {
        "ci" => ci::run(args),
        "tidy" => tidy::run(args),
        "deb" => deb::run(args),
        "test" => test::run(args),
        "demo" => demo::run(args),
        "faults" => faults::run(args),
        "large" => large::run(args),
        "torture" => torture::run(args),
        "torture-mount" => torture_mount::run(args),
        "torture-cluster" => torture_cluster::run(args),
        "power-cut" => power::run(args),
        "suites" => suites::run(args),
        "bench" => bench::run(args),
        "writer" => writer::run(args),
        "cluster-app" => cluster::app::run(args),
        _ => {
            print!("{USAGE}");
            error::fail(format!("unknown command {command:?}"))
        }
    }
}
