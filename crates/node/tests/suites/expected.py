"""Lists of what may differ between the mount and the plain disk, and why.

A list is paragraphs: a reason, and below it, indented, the differences that it explains.

    While a database in WAL mode is captured, a checkpoint may stay incomplete.
        wal9: wal9-1.6
        e_walauto: e_walauto-1.1.*

A line begins with the test file, or a pattern of files; the names of tests or patterns of names follow, as `*`, `?` and `[a-z]` are used for file
names. `*` at the end also stands for what is not a test, as `@` names do:

    @ends-early      the file ended before its last test      @count         it ran another number of tests
    @slow            it did not end in time                   @plain/TEST    TEST failed on the plain disk only
    @restored/FILE   the restored database differs            @lost/FILE     nothing was restored of the database
    @daemon-...      what the daemon did wrong                @points/...    the restore points are not those of the commits
"""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase


@dataclass
class Entry:
    file: str
    pattern: str
    reason: str
    seen: int = field(default=0)


class Expected:
    def __init__(self, path):
        self.entries = []
        reason, in_reason = [], False
        for line in path.read_text().splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            if not line.startswith(" "):
                reason = [*reason, line] if in_reason else [line]
                in_reason = True
                continue
            in_reason = False
            file, patterns = line.strip().split(": ", 1)
            self.entries += [Entry(file, pattern, " ".join(reason)) for pattern in patterns.split()]

    def find(self, file, name):
        """What explains a difference."""
        for entry in self.entries:
            if fnmatchcase(file, entry.file) and fnmatchcase(name, entry.pattern):
                entry.seen += 1
                return entry
        return None

    def unexplained(self, file, names):
        """Those differences that nothing explains."""
        return [name for name in names if self.find(file, name) is None]

    def unseen(self, files):
        """What was expected in these files and did not happen: much of it depends on timing."""
        return [entry for entry in self.entries if not entry.seen and any(fnmatchcase(file, entry.file) for file in files)]


class Report:
    """Counts differences as they are found. Those that no list explains make the run fail."""

    def __init__(self, expected, units="files", parts="tests"):
        self.expected, self.units, self.part_units = expected, units, parts
        self.files, self.parts, self.equal, self.different = [], 0, 0, 0
        self.explained, self.unexplained, self.by_chance = [], [], []

    def add(self, file, parts, differences, by_chance=()):
        """Notes one file with so many parts, and returns what is to be said of it. What came `by_chance` was not there when it was run again."""
        self.files.append(file)
        self.parts += parts
        self.equal += not differences
        self.different += bool(differences)
        bad = self.expected.unexplained(file, differences)
        good = [name for name in differences if name not in bad]
        self.explained += [(file, name) for name in good]
        self.unexplained += [(file, name) for name in bad]
        words = [f"expected: {shorten(good)}"] if good else []
        words += [f"NOT EXPECTED: {shorten(bad, 40)}"] if bad else []
        self.by_chance += [(file, name) for name in by_chance]
        words += [f"not when run again: {shorten(by_chance)}"] if by_chance else []
        return "; ".join(words) or "equal"

    def add_problems(self, problems):
        """Notes what went wrong with a daemon that served all files."""
        self.unexplained += [("daemon", problem) for problem in problems]

    def close(self, what):
        """Prints the end of a report. Tells whether everything is as expected."""
        for entry in self.expected.unseen(self.files):
            print(f"expected, not seen this time: {entry.file}: {entry.pattern}")
        for file, name in self.by_chance:
            print(f"not when run again: {file}: {name}")
        for file, name in self.unexplained:
            print(f"NOT EXPECTED: {file}: {name}")
        print(
            f"{what}: {len(self.files)} {self.units}, {self.parts} {self.part_units} on the mount; {self.equal} {self.units} equal, "
            f"{self.different} different; {len(self.explained)} differences expected, {len(self.unexplained)} not"
        )
        return not self.unexplained


def shorten(names, most=6):
    more = f" ... ({len(names)})" if len(names) > most else ""
    return " ".join(names[:most]) + more
