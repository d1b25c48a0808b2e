"""The trial of Python's sqlite3. Usage: trial.py DATABASE MODE; what a trial does stands in drivers.py."""

import contextlib
import platform
import sqlite3
import sys


def part(db, number, rows):
    """Begins a transaction, in the way of this driver: with its first write."""
    values = ((f"row {number * 1000 + i} äöü", bytes([i % 251]) * (i % 900), i / 8) for i in range(1, rows + 1))
    db.executemany("INSERT INTO t(b, c, d) VALUES (?, ?, ?)", values)
    db.execute("UPDATE t SET b = b || '!' WHERE a % 5 = ?", [number % 5])


path, mode = sys.argv[1:]
print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}")
with contextlib.closing(sqlite3.connect(path, timeout=20)) as db:
    db.execute(f"PRAGMA journal_mode = {mode}")
    db.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c BLOB, d REAL)")
    sys.stdin.readline()
    for number in range(1, 7):
        with db:
            part(db, number, number * 7)
    part(db, 7, 30)
    db.rollback()
    with db:
        part(db, 8, 3000)
    with db:
        db.execute("DELETE FROM t WHERE a % 4 = 0")
    with db:
        part(db, 9, 5)
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as other:
        print(*other.execute("SELECT count(*), sum(length(b)), sum(length(c)), sum(d) FROM t").fetchone())
        print(*other.execute("PRAGMA integrity_check").fetchone())
    print(*db.execute("PRAGMA journal_mode").fetchone())
