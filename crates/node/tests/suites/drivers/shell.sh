#!/bin/sh
# The trial of the sqlite3 command line. Usage: shell.sh DATABASE MODE; what a trial does stands in drivers.py.
set -eu
echo "sqlite3 $(sqlite3 --version | cut -d ' ' -f 1)"

part() {
    cat <<SQL
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $2)
    INSERT INTO t(b, c, d) SELECT 'row ' || ($1 * 1000 + i) || ' äöü', zeroblob(i % 900), i / 8.0 FROM n;
UPDATE t SET b = b || '!' WHERE a % 5 = $1 % 5;
$3;
SQL
}

{
    echo ".timeout 20000"
    echo "PRAGMA journal_mode = $2; CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c BLOB, d REAL);"
    read -r _
    for i in 1 2 3 4 5 6; do part $i $((i * 7)) COMMIT; done
    part 7 30 ROLLBACK
    part 8 3000 COMMIT
    echo "DELETE FROM t WHERE a % 4 = 0;"
    part 9 5 COMMIT
    echo "SELECT count(*), sum(length(b)), sum(length(c)), sum(d) FROM t; PRAGMA integrity_check; PRAGMA journal_mode;"
} | sqlite3 -batch -bail "$1"
