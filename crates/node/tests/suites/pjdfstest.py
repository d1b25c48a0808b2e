"""pjdfstest: what POSIX says of file system calls, on the plain disk and on the mount."""

import os
import re
import tempfile
import time
from pathlib import Path

from expected import Expected, Report
from mounted import Mount, empty_folder, run

HERE = Path(__file__).resolve().parent
SECONDS = 1200
# Another file system, for what must not work between two.
ELSEWHERE = Path("/dev/shm")
SHORT = ["rename", "unlink", "link", "truncate", "open"]

# Two users whose groups have them, on every Debian.
SETTINGS = """
[features]
posix_fallocate = {}
utime_now = {}
utimensat = {}
rename_ctime = {}

[settings]
naptime = 0.02

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"""


def read_results(log):
    """What came of each test: `ok`, `skipped`, or what failed."""
    results, last = {}, None
    for line in log.read_text(errors="replace").splitlines():
        found = re.match(r"^(\S+::\S+)\s+(ok|FAILED|skipped)$", line)
        if found:
            last = found[1]
            results[last] = found[2]
        elif last and results[last] == "FAILED" and line.startswith("\t"):
            results[last] = line.strip()
    return results


class Suite:
    def __init__(self, options):
        self.options = options

    def results(self, folder, where):
        settings = self.options.runs / "pjdfstest.toml"
        settings.write_text(SETTINGS)
        log = self.options.logs / f"pjdfstest.{where}"
        command = [self.options.work / "cargo/bin/pjdfstest", "-c", settings, "-p", folder]
        if ELSEWHERE.exists() and os.stat(ELSEWHERE).st_dev != os.stat(folder).st_dev:
            command += ["-s", ELSEWHERE]
        command += ["--", *(self.options.only or (SHORT if self.options.short else []))]
        os.environ["NO_COLOR"] = "1"
        _, took = run(command, folder, log, SECONDS)
        results = read_results(log)
        if not re.search(r"^Summary: ", log.read_text(errors="replace"), re.M):
            raise SystemExit(f"pjdfstest has not come to its end, see {log}")
        return results, took

    def run(self):
        # The names of sockets are short: 107 bytes with the folder.
        with tempfile.TemporaryDirectory(prefix="pj") as short:
            return self.run_in(Path(short))

    def run_in(self, short):
        began = time.monotonic()
        report = Report(Expected(HERE / "pjdfstest.expected"), "groups")
        os.chmod(short, 0o755)
        plain, plain_seconds = self.results(empty_folder(short / "p"), "plain")
        with Mount(self.options.program, short / "m", self.options.logs / "pjdfstest.daemon") as mount:
            results, seconds = self.results(mount.at, "mount")
            mount.stop()
        for group in sorted({name.split("::")[0] for name in plain | results}):
            names = sorted(name for name in plain | results if name.split("::")[0] == group)
            differing = [name for name in names if (plain.get(name) == "ok") != (results.get(name) == "ok")]
            ran = [name for name in names if results.get(name) != "skipped"]
            same = [name for name in ran if results.get(name) != "ok" and name not in differing]
            said = report.add(group, len(ran), differing)
            failing = f" | fail on both: {' '.join(same)}" if same else ""
            print(f"{group:16} {len(ran):4} tests, {len(names) - len(ran)} skipped | {said}{failing}")
            for name in differing:
                print(f"    {name}: plain: {plain.get(name)} | mount: {results.get(name)}")
        report.add_problems(mount.problems)
        print(f"plain {plain_seconds:.0f} s, mount {seconds:.0f} s, {time.monotonic() - began:.0f} s in all")
        return report.close("pjdfstest")
