#!/usr/bin/env python3
"""Runs suites of others on the plain disk and on `rhyolite mount`, and compares.

  sqlite     SQLite's own TCL tests, each file on a mount of its own; and what is restored against what is there
  fsx        random operations on one file, each read checked
  pjdfstest  what POSIX says of file system calls
  drivers    SQLite from a shell, Python, Node and a JVM; and what is restored against what is there

What may differ is listed, with reasons, in SUITE.expected beside this program. It ends with 1 when anything else differs. Suites that are not
there are fetched and built by build.sh, from Debian, crates.io and npm. It needs Linux with FUSE; as root it tests more.
"""

import argparse
import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

# Nothing is written beside the sources.
sys.dont_write_bytecode = True
from mounted import empty_folder  # noqa: E402

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[3]
SUITES = ["sqlite", "fsx", "pjdfstest", "drivers"]


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="default: all")
    parser.add_argument("--short", action="store_true", help="a selection: a minute for sqlite, seconds for the others")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="sqlite: files of these names; pjdfstest: tests with this in their names")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="sqlite: the Kth of N parts of the files, to run side by side with the others")
    parser.add_argument("--rhyolite", type=Path, default=ROOT / "target/debug/rhyolite", metavar="PROGRAM", help="default: target/debug/rhyolite")
    parser.add_argument("--work", type=Path, default=ROOT / "target/suites", metavar="FOLDER", help="builds; default: target/suites")
    parser.add_argument("--name", default="0", help="files and logs of the run are in WORK/runs/NAME, which is emptied at its start; default: 0")
    parser.add_argument("--impatient", action="store_true", help="sqlite: do not wait for the daemon to find databases; most files end before it does")
    parser.add_argument("--keep", action="store_true", help="keep the files of equal runs too")
    chosen = parser.parse_args()
    chosen.suites = chosen.suites or SUITES
    if unknown := [suite for suite in chosen.suites if suite not in SUITES]:
        parser.error(f"unknown suite: {' '.join(unknown)}")
    chosen.program, chosen.work = chosen.rhyolite.resolve(), chosen.work.resolve()
    if not chosen.program.exists():
        parser.error(f"{chosen.program} is not there: cargo build --workspace --bins")
    if not (part := re.fullmatch(r"(\d+)/(\d+)", chosen.part)) or not 1 <= int(part[1]) <= int(part[2]):
        parser.error(f"no part: {chosen.part}")
    chosen.part = slice(int(part[1]) - 1, None, int(part[2]))
    chosen.is_root = os.geteuid() == 0
    chosen.runs = empty_folder(chosen.work / "runs" / chosen.name)
    chosen.logs = empty_folder(chosen.runs / "logs")
    return chosen


def main():
    chosen = options()
    os.umask(0o022)
    # An end from outside takes the mount away too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    subprocess.run([HERE / "build.sh", *chosen.suites], env={**os.environ, "SUITES": str(chosen.work)}, check=True)
    good = True
    for suite in chosen.suites:
        print(f"== {suite}", flush=True)
        good &= importlib.import_module(suite).Suite(chosen).run()
    print("as expected" if good else f"not as expected; logs: {chosen.logs}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
