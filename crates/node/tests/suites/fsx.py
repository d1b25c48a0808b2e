"""fsx: random reads, writes, truncations and mappings of one file, each read checked; the same seeds on the plain disk and on the mount."""

import hashlib
import shutil
import time
from pathlib import Path

from expected import Expected, Report
from mounted import Mount, empty_folder, run

HERE = Path(__file__).resolve().parent
SECONDS = 600
SEEDS, OPERATIONS = 6, 20_000
SEEDS_SHORT, OPERATIONS_SHORT = 1, 2_000

# The mount opens files in three ways, by their names: cached by the kernel, direct I/O, passed through by the kernel.
NAMES = ["plain", "x-journal", "x-wal"]
BASIC = dict(read=10, write=10, truncate=3, fsync=1, fdatasync=1, close_open=2, mapread=0, mapwrite=0)
# What each kind of run does, and how often.
KINDS = {
    "basic": BASIC,
    "room": {**BASIC, "posix_fallocate": 3, "punch_hole": 3},
    "copies": {**BASIC, "copy_file_range": 3, "sendfile": 3, "posix_fadvise": 1},
    "mapped-reads": {**BASIC, "mapread": 10, "invalidate": 1},
    "mapped": {**BASIC, "mapread": 10, "mapwrite": 10, "invalidate": 1, "punch_hole": 2, "posix_fallocate": 2},
}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


class Suite:
    def __init__(self, options):
        self.options = options
        self.seeds, self.operations = (SEEDS_SHORT, OPERATIONS_SHORT) if options.short else (SEEDS, OPERATIONS)
        self.program = options.work / "cargo/bin/fsx"

    def one(self, folder, name, kind, seed, where):
        """Runs a seed. Returns the status and what the file holds in the end."""
        settings = self.options.runs / f"{kind}.toml"
        log = self.options.logs / f"fsx-{name}-{kind}-{seed}.{where}"
        command = [self.program, "-f", settings, "-N", str(self.operations), "-S", str(seed), "-P", self.options.runs, folder / name]
        (folder / name).unlink(missing_ok=True)
        status, took = run(command, folder, log, SECONDS)
        return status, digest(folder / name), took

    def compare(self, plain_folder, mount, name, kind):
        differences, times = [], [0.0, 0.0]
        for seed in range(1, self.seeds + 1):
            plain, plain_content, took = self.one(plain_folder, name, kind, seed, "plain")
            times[0] += took
            status, content, took = self.one(mount.at, name, kind, seed, "mount")
            times[1] += took
            if status != plain:
                differences.append(f"@status/{kind}")
            elif content != plain_content:
                differences.append(f"@content/{kind}")
            # What the kernel keeps in its cache and what lies behind the mount are the same.
            if digest(mount.data / name) != content:
                differences.append(f"@behind/{kind}")
        return sorted(set(differences)), times

    def run(self):
        report = Report(Expected(HERE / "fsx.expected"), "kinds of runs", "seeds")
        for kind, weights in KINDS.items():
            lines = [f"{operation} = {weight}" for operation, weight in weights.items()]
            (self.options.runs / f"{kind}.toml").write_text("[weights]\n" + "\n".join(lines) + "\n")
        plain_folder = empty_folder(self.options.runs / "fsx-plain")
        began = time.monotonic()
        with Mount(self.options.program, self.options.runs / "fsx", self.options.logs / "fsx.daemon") as mount:
            for name in NAMES:
                for kind in KINDS:
                    differences, (plain, mounted) = self.compare(plain_folder, mount, name, kind)
                    said = report.add(name, self.seeds, differences)
                    print(
                        f"{name:10} {kind:13} {self.seeds} seeds of {self.operations} operations: plain {plain:5.1f} s | mount {mounted:5.1f} s | {said}",
                        flush=True,
                    )
            mount.stop()
        report.add_problems(mount.problems)
        print(f"{time.monotonic() - began:.0f} s")
        if not self.options.keep:
            shutil.rmtree(self.options.runs / "fsx", ignore_errors=True)
        return report.close("fsx")
