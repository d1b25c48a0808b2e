// The trial of Node's own driver, node:sqlite. Usage: trial.mjs DATABASE MODE; what a trial does stands in drivers.py.
import { readSync } from "node:fs";
import { DatabaseSync } from "node:sqlite";

const [path, mode] = process.argv.slice(2);
const open = () => new DatabaseSync(path, { timeout: 20000 });
const db = open();
const { version } = db.prepare("SELECT sqlite_version() AS version").get();
console.log(`Node ${process.versions.node}, SQLite ${version}`);
db.exec(`PRAGMA journal_mode = ${mode}`);
db.exec("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c BLOB, d REAL)");
const insert = db.prepare("INSERT INTO t(b, c, d) VALUES (?, ?, ?)");
const update = db.prepare("UPDATE t SET b = b || '!' WHERE a % 5 = ?");

function part(number, rows, end) {
  db.exec("BEGIN");
  for (let i = 1; i <= rows; i += 1) {
    insert.run(`row ${number * 1000 + i} äöü`, new Uint8Array(i % 900).fill(i % 251), i / 8);
  }
  update.run(number % 5);
  db.exec(end);
}

readSync(0, Buffer.alloc(1));
for (let number = 1; number <= 6; number += 1) part(number, number * 7, "COMMIT");
part(7, 30, "ROLLBACK");
part(8, 3000, "COMMIT");
db.exec("DELETE FROM t WHERE a % 4 = 0");
part(9, 5, "COMMIT");

const other = open();
console.log(Object.values(other.prepare("SELECT count(*), sum(length(b)), sum(length(c)), sum(d) FROM t").get()).join(" "));
console.log(other.prepare("PRAGMA integrity_check").get().integrity_check);
other.close();
console.log(db.prepare("PRAGMA journal_mode").get().journal_mode);
db.close();
