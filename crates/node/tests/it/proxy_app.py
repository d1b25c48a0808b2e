#!/usr/bin/env python3
"""A web application over one SQLite database, for the tests of the proxy.

Usage: proxy_app.py PORT DATABASE NAME [read-only]

GET /count says how many rows there are, GET /who its name, POST /add adds a row and says how many there are then. An upgrade to "echo" sends back
what it is sent. SIGTERM lets the requests that are under way finish.
"""

import signal
import sqlite3
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, path, name = int(sys.argv[1]), sys.argv[2], sys.argv[3]
read_only = sys.argv[4:] == ["read-only"]


def connect():
    if read_only:
        return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    db = sqlite3.connect(path, timeout=10, isolation_level=None)
    db.execute("PRAGMA journal_mode = wal")
    db.execute("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)")
    return db


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def say(self, status, text):
        body = f"{text}\n".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Application", name)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.headers.get("Upgrade") == "echo":
            self.send_response(101)
            self.send_header("Connection", "upgrade")
            self.send_header("Upgrade", "echo")
            self.end_headers()
            while data := self.connection.recv(1000):
                self.connection.sendall(data)
            self.close_connection = True
        elif self.path == "/who":
            self.say(200, f"{name} {self.headers.get('X-Forwarded-For')}")
        elif self.path == "/touch":
            self.do_POST()
        else:
            db = connect()
            count = db.execute("SELECT count(*) FROM t").fetchone()[0]
            db.close()
            self.say(200, count)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        db = connect()
        db.execute("INSERT INTO t(b) VALUES (?)", (body,))
        count = db.execute("SELECT count(*) FROM t").fetchone()[0]
        db.close()
        self.say(200, count)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128


def stop(*_):
    threading.Thread(target=server.shutdown).start()


if not read_only:
    connect().close()
server = Server(("127.0.0.1", port), Handler)
signal.signal(signal.SIGTERM, stop)
server.serve_forever()
server.server_close()
