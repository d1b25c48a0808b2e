"""moto's server, one request at a time.

moto looks whether a condition (If-Match, If-None-Match) holds and then stores, in a thread for each request, without a lock in
between: now and then two conditional writes succeed where S3 lets one. This takes one request after the other.
"""

import threading

import moto.server


def one_at_a_time(app):
    lock = threading.Lock()

    def locked(environ, start_response):
        with lock:
            return list(app(environ, start_response))

    return locked


run_simple = moto.server.run_simple
moto.server.run_simple = lambda host, port, app, **options: run_simple(host, port, one_at_a_time(app), **options)
moto.server.main()
