"""SQLite's own TCL tests: each file on the plain disk and on a mount of its own, and what is restored against what is there."""

import fnmatch
import re
import shutil
import subprocess
import time
from pathlib import Path

from expected import Expected, Report
from mounted import Mount, databases, empty_folder, run

HERE = Path(__file__).resolve().parent
# As root, many files test that root may do nothing, and abort.
USER = "nobody"
# A file gets so long on the plain disk, or is left out; on the mount four times as long.
SECONDS = 60
MOUNT_FACTOR = 4
# A file that differs without a reason is run so often again.
AGAIN = 2
# Longest dump of a database.
DUMP_SECONDS = 60
# The tests lock other bytes than the rest of the world, so that small databases have a page that must stay free.
MOVED_LOCKS = "sqlite3_test_control_pending_byte 0x0010000\n"

# Seconds, files, names: journals, WAL, transactions, savepoints, vacuum, attach, locks.
SHORT = """
attach delete insert journal2 journal3 jrnlmode2 lock mjournal rollback2 savepoint7 trans3 vacuum vacuum2 wal7
""".split()


def chosen(tests, patterns, short):
    """The names of the files to run, in order."""
    names = sorted(path.stem for path in tests.glob("*.test"))
    if patterns:
        wanted = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        if not wanted:
            raise SystemExit(f"no test file is called {' or '.join(patterns)}")
        return wanted
    if short:
        return SHORT
    lines = [line.split("#")[0] for line in (HERE / "sqlite.files").read_text().splitlines()]
    words = " ".join(lines).split()
    wanted = [word for word in words if not word.startswith("-")]
    left_out = [word[1:] for word in words if word.startswith("-")]

    def is_in(name, patterns):
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    return [name for name in names if is_in(name, wanted) and not is_in(name, left_out)]


def adapted_tests(tests, folder, more=""):
    """The same test files with a `tester.tcl` that leaves SQLite's lock bytes where they are for everybody else, and does `more`."""
    folder = empty_folder(folder) / "test"
    folder.mkdir()
    (folder.parent / "ext").symlink_to(tests.parent / "ext")
    for path in tests.iterdir():
        if path.name != "tester.tcl":
            (folder / path.name).symlink_to(path)
    text = (tests / "tester.tcl").read_text()
    if text.count(MOVED_LOCKS) != 1:
        raise SystemExit("tester.tcl does not move the lock bytes as it did: to the daemon no database of its tests would be locked")
    (folder / "tester.tcl").write_text(text.replace(MOVED_LOCKS, "") + more)
    return folder


def read_result(log, status):
    """What a file says of itself: how many tests ran, which failed, and how it ended."""
    text = log.read_text("latin1")
    total = re.search(r"^(\d+) errors out of (\d+) tests", text, re.M)
    listed = re.search(r"^!Failures on these tests: (.*)$", text, re.M)
    failed = listed[1].split() if listed else re.findall(r"^! (\S+) expected", text, re.M)
    done = len(re.findall(r"\.\.\. Ok$", text, re.M))
    ended = "@slow" if status is None else None if total else "@ends-early"
    return {"failed": set(failed), "tests": int(total[2]) if total else done + len(failed), "ended": ended}


def difference(plain, mount):
    names = sorted(mount["failed"] - plain["failed"])
    if plain["ended"] is None:
        names += [f"@plain/{name}" for name in sorted(plain["failed"] - mount["failed"]) if mount["ended"] is None]
    if mount["ended"] != plain["ended"]:
        names.append(mount["ended"] or f"@plain/{plain['ended']}")
    elif mount["tests"] != plain["tests"] and mount["ended"] is None:
        names.append("@count")
    return names


def dump(shell, path):
    """The rows of a database as SQL, with errors; the same for the same contents."""
    try:
        done = subprocess.run([shell, "-batch", path, ".dump"], capture_output=True, timeout=DUMP_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return "no end"
    return done.stdout, done.stderr.replace(bytes(path), b"")


def restore_difference(program, shell, mount, folder):
    """Compares each database left with what is restored of it."""
    restored, copy = folder / "restored", folder / "copy"
    shutil.rmtree(restored, ignore_errors=True)
    shutil.rmtree(copy, ignore_errors=True)
    done = subprocess.run([program, "restore", mount.store, "--all", "-o", restored], capture_output=True, text=True)
    # 5: nothing was captured, or not all is there to restore. The loop below tells which.
    names = [] if done.returncode in (0, 5) else [f"@restore-status/{done.returncode}"]
    # SQLite rolls back and checkpoints what it opens; the folder itself is left as the test left it.
    shutil.copytree(mount.data, copy, symlinks=True, ignore=lambda _, found: [name for name in found if name.endswith("-rhyolite")])
    for path in list(databases(copy)):
        other = restored / path.relative_to(copy)
        if not other.exists():
            names.append(f"@lost/{path.name}")
        elif dump(shell, path) != dump(shell, other):
            names.append(f"@restored/{path.name}")
    return names


def may_be_chance(name):
    """Tests may meet a lock of the daemon's. What it did itself, and what is restored, never depends on that."""
    return not name.startswith(("@daemon", "@lost", "@points", "@restore"))


class Suite:
    def __init__(self, options):
        self.options = options
        self.work = options.work / "sqlite"
        self.build = self.work / "build"
        self.tests = self.work / "source/tree/test"

    def run_in(self, folder, tests, name, seconds):
        folder.mkdir(parents=True)
        if self.options.is_root:
            shutil.chown(folder, USER)
        log = self.options.logs / f"sqlite-{name}.{'mount' if tests is self.mount_tests else 'plain'}"
        status, took = run([self.build / "testfixture", tests / f"{name}.test"], folder, log, seconds, USER)
        return {**read_result(log, status), "seconds": took}

    def one(self, name):
        """One file on the plain disk and on the mount. Nothing where it is too slow on the plain disk already."""
        folder = self.options.runs / name
        shutil.rmtree(folder, ignore_errors=True)
        plain = self.run_in(folder / "plain", self.plain_tests, name, SECONDS)
        if plain["ended"] == "@slow":
            return plain, None, []
        with Mount(self.options.program, folder, self.options.logs / f"sqlite-{name}.daemon") as mount:
            result = self.run_in(mount.at / "w", self.mount_tests, name, SECONDS * MOUNT_FACTOR)
            mount.settle()
            mount.stop()
        names = difference(plain, result) + mount.problems
        names += restore_difference(self.options.program, self.build / "sqlite3", mount, folder)
        if not names and not self.options.keep:
            shutil.rmtree(folder, ignore_errors=True)
        return plain, result, names

    def again(self, name, result, expected):
        """Runs a file again that differs without a reason. Gives the last result with what differs in all runs, and what does not."""
        plain, mount, names = result
        chance = []
        for _ in range(AGAIN):
            if not any(may_be_chance(found) for found in expected.unexplained(name, names)):
                break
            new_plain, new_mount, others = self.one(name)
            if new_mount is None:
                break
            plain, mount = new_plain, new_mount
            gone = [found for found in names if may_be_chance(found) and found not in others]
            chance += [found for found in expected.unexplained(name, gone) if found not in chance]
            names = [found for found in names if found not in gone] + [found for found in others if not may_be_chance(found)]
        return plain, mount, list(dict.fromkeys(names)), chance

    def run(self):
        patient = "" if self.options.impatient else (HERE / "patient.tcl").read_text()
        self.plain_tests = adapted_tests(self.tests, self.options.runs / "plain-tests")
        self.mount_tests = adapted_tests(self.tests, self.options.runs / "mount-tests", patient)
        report = Report(Expected(HERE / "sqlite.expected"))
        began = time.monotonic()
        for name in chosen(self.tests, self.options.only, self.options.short)[self.options.part]:
            plain, mount, names = self.one(name)
            if mount is None:
                print(f"{name:16} left out: more than {SECONDS} s on the plain disk", flush=True)
                continue
            plain, mount, names, chance = self.again(name, (plain, mount, names), report.expected)
            said = report.add(name, mount["tests"], names, chance)
            print(
                f"{name:16} plain {plain['tests']:5} tests {len(plain['failed']):3} failed {plain['seconds']:6.1f} s | "
                f"mount {mount['tests']:5} tests {len(mount['failed']):3} failed {mount['seconds']:6.1f} s | {said}",
                flush=True,
            )
        print(f"{time.monotonic() - began:.0f} s")
        return report.close("sqlite")
