#!/usr/bin/env python3
"""A stand-in for Google Cloud Storage's XML API, for tests: no server of Google's can be installed.

Written from Google's reference of the XML API (cloud.google.com/storage/docs/xml-api) and its pages on request preconditions,
multipart uploads and quotas, in so far as a backup needs them:

- a generation per object that never repeats; `x-goog-if-generation-match`, where 0 stands for "no such object"; 412 otherwise;
- answers that name the generation (`x-goog-generation`), a strong ETag, the time of the last change;
- ranges from the start and from the end, 416 where none of the bytes exists;
- lists of version 2 in order, a page of at most 1,000 names at a time, `start-after` and continuation tokens;
- uploads in parts of 5 MiB and more (the last may be smaller); parts are not seen before the upload is completed;
- 204 for a deletion, 404 for what is not there, errors as XML with Code and Message.

usage: gcs_server.py --port PORT [--ignore-conditions] [--once-a-second]

--ignore-conditions: accept every write, as a server would that does not know preconditions. The suite must notice.
--once-a-second: refuse a second write of the same name within a second with 429, as the documented limit allows.
"""

import argparse
import hashlib
import itertools
import re
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

PART_BYTES_MIN = 5 << 20
PAGE_MAX = 1000


class Refused(Exception):
    """An answer that is an error: its status and its code."""

    def __init__(self, status, code, message):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Stored:
    """One generation of an object."""

    def __init__(self, body, generation, etag=None, headers=None):
        self.body, self.generation = body, generation
        self.etag = etag or '"%s"' % hashlib.md5(body).hexdigest()
        self.changed = time.time()
        self.headers = headers or {}


class Bucket:
    def __init__(self):
        self.objects = {}
        self.uploads = {}
        self.written = {}


class State:
    """Everything there is, behind one lock: a write and its condition are one step, as in the real service."""

    def __init__(self, options):
        self.lock = threading.Lock()
        self.buckets = {}
        self.generations = itertools.count(1_700_000_000_000_000)
        self.options = options

    def bucket(self, name):
        if name not in self.buckets:
            raise Refused(404, "NoSuchBucket", "The specified bucket does not exist.")
        return self.buckets[name]

    def object(self, bucket, key):
        stored = self.bucket(bucket).objects.get(key)
        if stored is None:
            raise Refused(404, "NoSuchKey", "The specified key does not exist.")
        return stored

    def check_condition(self, stored, wanted):
        if wanted is None or self.options.ignore_conditions:
            return
        if int(wanted) != (stored.generation if stored else 0):
            raise Refused(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")

    def check_rate(self, bucket, key):
        now, last = time.monotonic(), bucket.written.get(key)
        if self.options.once_a_second and last is not None and now - last < 1:
            raise Refused(429, "SlowDown", "The object exceeded the rate limit for object mutation operations.")
        bucket.written[key] = now

    def put(self, bucket_name, key, body, condition, headers, etag=None):
        bucket = self.bucket(bucket_name)
        self.check_condition(bucket.objects.get(key), condition)
        self.check_rate(bucket, key)
        stored = Stored(body, next(self.generations), etag, headers)
        bucket.objects[key] = stored
        return stored


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Otherwise the header waits for an acknowledgement before the body is sent.
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", headers=(), length=None):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def handle_request(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        url = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(url.query, keep_blank_values=True).items()}
        bucket, _, key = url.path.lstrip("/").partition("/")
        try:
            with self.server.state.lock:
                answer = self.act(unquote(bucket), unquote(key), query, body)
        except Refused as refused:
            text = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>%s</Code><Message>%s</Message></Error>"
            body = (text % (refused.code, escape(refused.message))).encode()
            answer = (refused.status, body, [("Content-Type", "application/xml")])
        self.answer(*answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request

    def act(self, bucket, key, query, body):
        if not key:
            return self.on_bucket(bucket, query)
        method = self.command
        if method in ("GET", "HEAD"):
            return self.read(bucket, key)
        if method == "PUT":
            return self.part(bucket, key, query, body) if "uploadId" in query else self.write(bucket, key, body)
        if method == "POST":
            return self.begin(bucket, key) if "uploads" in query else self.complete(bucket, key, query, body)
        if "uploadId" in query:
            self.upload(bucket, key, query)
            del self.server.state.bucket(bucket).uploads[query["uploadId"]]
            return (204,)
        self.server.state.object(bucket, key)
        del self.server.state.bucket(bucket).objects[key]
        return (204,)

    def described(self, stored):
        return [
            ("ETag", stored.etag),
            ("x-goog-generation", str(stored.generation)),
            ("x-goog-metageneration", "1"),
            ("Last-Modified", formatdate(stored.changed, usegmt=True)),
            *stored.headers.items(),
        ]

    def kept_headers(self):
        names = [n.lower() for n in self.headers]
        return {n: self.headers[n] for n in names if n.startswith("x-goog-meta-") or n == "content-type"}

    def write(self, bucket, key, body):
        condition = self.headers.get("x-goog-if-generation-match")
        stored = self.server.state.put(bucket, key, body, condition, self.kept_headers())
        return (200, b"", self.described(stored))

    def read(self, bucket, key):
        stored = self.server.state.object(bucket, key)
        self.server.state.check_condition(stored, self.headers.get("x-goog-if-generation-match"))
        headers, size = self.described(stored), len(stored.body)
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked or asked.groups() == ("", ""):
            return (200, stored.body, headers, size)
        first, last = asked.groups()
        start = int(first) if first else max(0, size - int(last))
        end = min(int(last) + 1, size) if first and last else size
        if start >= end:
            raise Refused(416, "InvalidRange", "The requested range cannot be satisfied.")
        headers.append(("Content-Range", "bytes %d-%d/%d" % (start, end - 1, size)))
        return (206, stored.body[start:end], headers, end - start)

    def on_bucket(self, name, query):
        state = self.server.state
        if self.command == "PUT":
            if name in state.buckets:
                raise Refused(409, "BucketAlreadyOwnedByYou", "Your previous request to create the bucket succeeded.")
            state.buckets[name] = Bucket()
            return (200,)
        if self.command != "GET" or query.get("list-type") != "2":
            raise Refused(400, "InvalidArgument", "Only lists of version 2 are known here.")
        return self.list(name, query)

    def list(self, name, query):
        objects = self.server.state.bucket(name).objects
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        after = query.get("continuation-token") or query.get("start-after") or ""
        most = min(int(query.get("max-keys") or PAGE_MAX), PAGE_MAX)
        rows, folders, last, more = [], [], "", False
        # Names are in the order of their UTF-8 bytes, which is that of their code points.
        for key in sorted(objects):
            rest = key[len(prefix):]
            if not key.startswith(prefix) or key <= after:
                continue
            folder = prefix + rest.split(delimiter)[0] + delimiter if delimiter and delimiter in rest else None
            if folder and (folder in folders or after.startswith(folder)):
                continue
            if len(rows) + len(folders) == most:
                more = True
                break
            last = folder + "\U0010ffff" if folder else key
            if folder:
                folders.append(folder)
                continue
            stored = objects[key]
            changed = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stored.changed))
            rows.append(
                "<Contents><Key>%s</Key><Generation>%d</Generation><MetaGeneration>1</MetaGeneration><LastModified>%s"
                "</LastModified><ETag>%s</ETag><Size>%d</Size></Contents>"
                % (escape(key), stored.generation, changed, escape(stored.etag), len(stored.body))
            )
        token = "<NextContinuationToken>%s</NextContinuationToken>" % escape(last) if more else ""
        common = "".join("<CommonPrefixes><Prefix>%s</Prefix></CommonPrefixes>" % escape(f) for f in folders)
        text = (
            "<?xml version='1.0' encoding='UTF-8'?><ListBucketResult xmlns='http://doc.s3.amazonaws.com/2006-03-01'>"
            "<Name>%s</Name><Prefix>%s</Prefix><IsTruncated>%s</IsTruncated>%s%s%s</ListBucketResult>"
        ) % (escape(name), escape(prefix), str(more).lower(), token, "".join(rows), common)
        return (200, text.encode(), [("Content-Type", "application/xml")])

    def begin(self, bucket, key):
        uploads = self.server.state.bucket(bucket).uploads
        upload = "upload-%d" % next(self.server.state.generations)
        uploads[upload] = (key, {}, self.kept_headers())
        text = (
            "<?xml version='1.0' encoding='UTF-8'?><InitiateMultipartUploadResult><Bucket>%s</Bucket><Key>%s</Key>"
            "<UploadId>%s</UploadId></InitiateMultipartUploadResult>"
        ) % (escape(bucket), escape(key), upload)
        return (200, text.encode(), [("Content-Type", "application/xml")])

    def upload(self, bucket, key, query):
        found = self.server.state.bucket(bucket).uploads.get(query.get("uploadId"))
        if found is None or found[0] != key:
            raise Refused(404, "NoSuchUpload", "The requested upload was not found.")
        return found

    def part(self, bucket, key, query, body):
        _, parts, _ = self.upload(bucket, key, query)
        number = int(query.get("partNumber", 0))
        if not 1 <= number <= 10_000:
            raise Refused(400, "InvalidArgument", "Part numbers are 1 to 10000.")
        parts[number] = body
        return (200, b"", [("ETag", '"%s"' % hashlib.md5(body).hexdigest())])

    def complete(self, bucket, key, query, body):
        _, parts, headers = self.upload(bucket, key, query)
        wanted = []
        for part in ElementTree.fromstring(body):
            fields = {e.tag.rpartition("}")[2]: (e.text or "").strip() for e in part}
            number, data = int(fields["PartNumber"]), parts.get(int(fields["PartNumber"]))
            if data is None or fields["ETag"].strip('"') != hashlib.md5(data).hexdigest():
                raise Refused(400, "InvalidPart", "One or more of the specified parts could not be found.")
            wanted.append((number, data))
        if [n for n, _ in wanted] != sorted({n for n, _ in wanted}) or not wanted:
            raise Refused(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
        if any(len(data) < PART_BYTES_MIN for _, data in wanted[:-1]):
            raise Refused(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed object size.")
        whole = b"".join(data for _, data in wanted)
        etag = '"%s-%d"' % (hashlib.md5(whole).hexdigest(), len(wanted))
        stored = self.server.state.put(bucket, key, whole, None, headers, etag)
        del self.server.state.bucket(bucket).uploads[query["uploadId"]]
        text = (
            "<?xml version='1.0' encoding='UTF-8'?><CompleteMultipartUploadResult><Bucket>%s</Bucket><Key>%s</Key>"
            "<ETag>%s</ETag></CompleteMultipartUploadResult>"
        ) % (escape(bucket), escape(key), escape(etag))
        return (200, text.encode(), [("x-goog-generation", str(stored.generation)), ("Content-Type", "application/xml")])


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ignore-conditions", action="store_true")
    parser.add_argument("--once-a-second", action="store_true")
    options = parser.parse_args()
    server = Server(("127.0.0.1", options.port), Handler)
    server.state = State(options)
    server.serve_forever()


if __name__ == "__main__":
    main()
