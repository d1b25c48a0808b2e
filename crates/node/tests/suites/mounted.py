"""A folder under `rhyolite mount`, and the programs that run in one."""

import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path

# Longest wait for the daemon to mount, to end, and to find the databases that a program has left.
MOUNT_SECONDS = 20
END_SECONDS = 60
FIND_SECONDS = 6
# What a daemon that has found everything still gets: a commit is uploaded a second after it was made.
SETTLE_SECONDS = 1.5

SQLITE_MAGIC = b"SQLite format 3\0"
SIDE_FILES = ("-journal", "-wal", "-shm")


def is_mounted(place):
    wanted = str(place).replace(" ", "\\040")
    with open("/proc/self/mounts") as mounts:
        return any(line.split()[1] == wanted for line in mounts)


def empty_folder(path):
    """Makes a folder, or empties the one that is there."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def databases(folder):
    """The SQLite databases below a folder. Symbolic links are not among them: they are not replicated."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file() or path.name.endswith(SIDE_FILES):
            continue
        if any(part.endswith("-rhyolite") for part in path.relative_to(folder).parts):
            continue
        with open(path, "rb") as file:
            if file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC:
                yield path


def run(command, cwd, log, seconds, user=None):
    """Runs a program to its end, or for so many seconds. Its status is None if it was ended."""
    who = {}
    if user is not None and os.geteuid() == 0:
        entry = pwd.getpwnam(user)
        who = dict(user=entry.pw_uid, group=entry.pw_gid, extra_groups=[])
    began = time.monotonic()
    with open(log, "wb") as output:
        # A session of its own: what it starts is ended with it.
        process = subprocess.Popen(
            command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **who
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if status is None:
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                pass  # It waits in the kernel, and ends when the mount is taken away.
    return status, time.monotonic() - began


class Mount:
    """`rhyolite mount` of a fresh folder. `data` is the folder behind, `at` the mount, `store` a local store."""

    def __init__(self, program, work, log):
        self.program = program
        self.log = log
        self.data, self.at, self.store = (empty_folder(work / name) for name in ("data", "at", "store"))
        self.problems = []
        self.daemon = None

    def __enter__(self):
        command = [self.program, "mount", self.data, "--at", self.at, "--store", self.store]
        with open(self.log, "wb") as log:
            self.daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        end = time.monotonic() + MOUNT_SECONDS
        while not is_mounted(self.at):
            if self.daemon.poll() is not None or time.monotonic() > end:
                self.take_away()
                raise SystemExit(f"nothing is mounted: {Path(self.log).read_text(errors='replace').strip()}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_):
        self.take_away()

    def settle(self):
        """Waits until the daemon has found the databases that are there, and a moment for what was committed last."""
        end = time.monotonic() + FIND_SECONDS

        def is_found(path):
            return path.with_name(f".{path.name}-rhyolite").exists()

        while not all(map(is_found, databases(self.data))) and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(SETTLE_SECONDS)

    def stop(self):
        """Ends the daemon as an operator would, and notes what went wrong with it."""
        if self.daemon.poll() is not None:
            self.problems.append(f"@daemon-died/{self.daemon.returncode}")
        self.daemon.send_signal(signal.SIGTERM)
        try:
            status = self.daemon.wait(END_SECONDS)
            if status != 0 and not self.problems:
                self.problems.append(f"@daemon-status/{status}")
        except subprocess.TimeoutExpired:
            self.problems.append("@daemon-hangs")
        if self.take_away():
            self.problems.append("@mount-left")
        if "panicked" in Path(self.log).read_text(errors="replace"):
            self.problems.append("@daemon-panic")

    def take_away(self):
        """Leaves no mount and no daemon behind, whatever has happened. Tells whether there was a mount."""
        was_there = False
        while is_mounted(self.at):
            was_there = True
            if subprocess.run(["umount", "-l", "-f", self.at], stderr=subprocess.DEVNULL).returncode != 0:
                if subprocess.run(["fusermount3", "-u", "-z", self.at]).returncode != 0:
                    break
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.kill()
            self.daemon.wait(END_SECONDS)
        return was_there
