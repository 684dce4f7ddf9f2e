"""A Google Cloud Storage server on loopback that keeps its objects in memory.

It serves the part of the JSON API that gcsfs, google-cloud-storage and tensorstore use: media,
multipart and resumable uploads, byte ranges, generations and their preconditions, listing with
prefixes, delimiters and pages, copies, and deletion. No credentials are asked for. Faults are
injected on request: statuses, and answers that break off in the middle.
"""

import base64
import collections
import contextlib
import dataclasses
import hashlib
import http.server
import itertools
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator

_PAGE = 1000  # objects of one page of a listing, as of the real service


@dataclasses.dataclass(frozen=True)
class StoredObject:
    content: bytes
    generation: int
    updated: str
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)

    def resource(self, bucket: str, name: str) -> dict[str, object]:
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{self.generation}",
            "name": name,
            "bucket": bucket,
            "generation": str(self.generation),
            "metageneration": "1",
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            "size": str(len(self.content)),
            "md5Hash": base64.b64encode(hashlib.md5(self.content).digest()).decode(),
            "etag": str(self.generation),
            "timeCreated": self.updated,
            "updated": self.updated,
            **({"metadata": self.metadata} if self.metadata else {}),
        }


class GcsServer:
    """The server, its buckets, and the faults that it is to make.

    Attributes:
        buckets: the objects of each bucket, by name.
        requests: what was asked, as "METHOD PATH?QUERY [RANGE]".
        forbidden: buckets that answer 403.
    """

    def __init__(self, *buckets: str):
        self.buckets: dict[str, dict[str, StoredObject]] = {name: {} for name in buckets}
        self.requests: list[str] = []
        self.forbidden: set[str] = set()
        self.lock = threading.RLock()
        self.uploads: dict[str, tuple[str, str, dict[str, str], bytearray]] = {}
        self._faults: collections.deque[tuple[str, int | None]] = collections.deque()
        self._generations = itertools.count(time.time_ns() // 1000)
        self._uploads = itertools.count(1)
        handler = type("Handler", (_Handler,), {"gcs": self})
        self._server = _QuietServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """Returns the variables that lead every client here, without looking for credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,  # of the ArrayRecord library
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "GOOGLE_CLOUD_PROJECT": "project",
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def fail(self, *statuses: int | None, matching: str = "") -> None:
        """Answers the next requests that match with these statuses; None: breaks off instead."""
        with self.lock:
            self._faults.extend((matching, status) for status in statuses)

    def next_fault(self, request: str) -> tuple[bool, int | None]:
        with self.lock:
            if self._faults and re.search(self._faults[0][0], request):
                return True, self._faults.popleft()[1]
        return False, None

    def put(self, bucket: str, name: str, content: bytes) -> StoredObject:
        with self.lock:
            updated = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
            stored = StoredObject(bytes(content), next(self._generations), updated)
            self.buckets[bucket][name] = stored
            return stored

    def new_upload(self, bucket: str, name: str, query: dict[str, str]) -> str:
        with self.lock:
            key = str(next(self._uploads))
            self.uploads[key] = (bucket, name, query, bytearray())
            return key


@contextlib.contextmanager
def gcs_server(*buckets: str) -> Iterator[GcsServer]:
    server = GcsServer(*buckets)
    try:
        yield server
    finally:
        server.close()


class _QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Does nothing: clients that are killed, or lose interest, break their connections."""


class _Answer(Exception):  # noqa: N818  an answer, which is an error only for statuses from 400
    def __init__(self, status: int, message: str):
        self.status, self.message = status, message


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An answer is sent at once, not its headers first: otherwise each takes 40 ms.
    wbufsize = 1 << 20
    disable_nagle_algorithm = True
    gcs: GcsServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_GET  # noqa: N815

    def _serve(self) -> None:
        body = self._body()
        target = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(target.query, keep_blank_values=True))
        asked = f"{self.command} {self.path} {self.headers.get('Range') or ''}".strip()
        with self.gcs.lock:
            self.gcs.requests.append(asked)
        is_faulty, self._fault = self.gcs.next_fault(asked)
        try:
            if is_faulty and self._fault is not None:
                raise _Answer(self._fault, "injected")
            self._breaks_off = is_faulty
            self._route(target.path, query, body)
        except _Answer as answer:
            self._breaks_off = False
            if answer.status in (304, 308):
                self._send(answer.status, b"")
                return
            error = {"code": answer.status, "message": answer.message}
            self._send(answer.status, json.dumps({"error": error}).encode(), "application/json")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _route(self, path: str, query: dict[str, str], body: bytes) -> None:
        if path == "/storage/v1/b":
            items = [{"name": name, "id": name} for name in self.gcs.buckets]
            self._json({"kind": "storage#buckets", "items": items})
            return
        match = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(?:/(o)(?:/(.*))?)?", path)
        if match is None:
            raise _Answer(404, f"no such address: {path}")
        kind, bucket, has_objects, rest = match.groups()
        bucket = urllib.parse.unquote(bucket)
        if bucket in self.gcs.forbidden:
            raise _Answer(403, "the caller does not have storage.objects access")
        if bucket not in self.gcs.buckets:
            raise _Answer(404, "The specified bucket does not exist.")
        if kind == "/upload":
            self._upload(bucket, query, body)
        elif not has_objects:
            self._json({"kind": "storage#bucket", "id": bucket, "name": bucket})
        elif rest is None:
            self._list(bucket, query)
        elif copied := re.fullmatch(r"([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)", rest):
            source, target_bucket, target = map(urllib.parse.unquote, copied.groups())
            stored = self._object(bucket, source, query)
            with self.gcs.lock:
                self._check_match(target_bucket, target, query)
                copy = self.gcs.put(target_bucket, target, stored.content)
            size = str(len(stored.content))
            resource = copy.resource(target_bucket, target)
            done = {"done": True, "objectSize": size, "totalBytesRewritten": size}
            self._json(resource if "/copyTo/" in rest else {**done, "resource": resource})
        else:
            self._serve_object(bucket, urllib.parse.unquote(rest), query, body)

    def _serve_object(self, bucket: str, name: str, query: dict[str, str], body: bytes) -> None:
        if self.command == "DELETE":
            with self.gcs.lock:
                self._object(bucket, name, query)
                del self.gcs.buckets[bucket][name]
            self._send(204, b"")
            return
        stored = self._object(bucket, name, query)
        if self.command == "PATCH":
            stored.metadata.update(json.loads(body).get("metadata", {}))
        if query.get("alt") == "media":
            self._send_content(stored)
        else:
            self._json(stored.resource(bucket, name))

    def _object(self, bucket: str, name: str, query: dict[str, str]) -> StoredObject:
        stored = self.gcs.buckets[bucket].get(name)
        if stored is None or query.get("generation", str(stored.generation)) != str(
            stored.generation
        ):
            if "ifGenerationMatch" in query and query["ifGenerationMatch"] != "0":
                raise _Answer(412, "conditionNotMet")
            raise _Answer(404, f"No such object: {bucket}/{name}")
        self._check_match(bucket, name, query)
        if query.get("ifGenerationNotMatch") == str(stored.generation):
            raise _Answer(304, "not modified")
        return stored

    def _check_match(self, bucket: str, name: str, query: dict[str, str]) -> None:
        stored = self.gcs.buckets[bucket].get(name)
        generation = "0" if stored is None else str(stored.generation)
        if query.get("ifGenerationMatch", generation) != generation:
            raise _Answer(412, "conditionNotMet")

    def _send_content(self, stored: StoredObject) -> None:
        size = len(stored.content)
        headers = {"X-Goog-Generation": str(stored.generation), "X-Goog-Metageneration": "1"}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            self._send(200, stored.content, "application/octet-stream", headers)
            return
        first, last = asked.groups()
        start = int(first) if first else max(size - int(last), 0)
        stop = min(int(last) + 1, size) if first and last else size
        if start >= size:
            raise _Answer(416, "Requested range not satisfiable")
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._send(206, stored.content[start:stop], "application/octet-stream", headers)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        count = min(int(query.get("maxResults", _PAGE)), _PAGE)
        with self.gcs.lock:
            objects = dict(self.gcs.buckets[bucket])
        entries: dict[str, StoredObject | None] = {}
        for name in sorted(objects):
            if not name.startswith(prefix) or name < query.get("startOffset", ""):
                continue
            if "endOffset" in query and name >= query["endOffset"]:
                continue
            end = name.find(delimiter, len(prefix)) if delimiter else -1
            if end >= 0 and delimiter:
                entries[name[: end + len(delimiter)]] = None
            else:
                entries[name] = objects[name]
        after = query.get("pageToken", "")
        names = [name for name in entries if name > after]
        page = names[:count]
        answer: dict[str, object] = {"kind": "storage#objects"}
        items = [
            stored.resource(bucket, name) for name in page if (stored := entries[name]) is not None
        ]
        prefixes = [name for name in page if entries[name] is None]
        answer |= {"items": items} if items else {}
        answer |= {"prefixes": prefixes} if prefixes else {}
        if len(names) > count:
            answer["nextPageToken"] = page[-1]
        self._json(answer)

    def _upload(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        if "upload_id" in query:
            self._continue_upload(query["upload_id"], body)
            return
        kind, name = query.get("uploadType"), query.get("name", "")
        if kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
            assert boundary is not None
            parts = re.split(rb"\r?\n?--" + re.escape(boundary[1]).encode() + rb"(?:--)?", body)
            metadata, content = (
                re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in parts[1:3]
            )
            self._store(bucket, name or json.loads(metadata)["name"], query, content)
        elif kind == "resumable":
            name = name or json.loads(body)["name"]
            upload = self.gcs.new_upload(bucket, name, query)
            place = f"{self.gcs.url}/upload/storage/v1/b/{bucket}/o"
            location = f"{place}?uploadType=resumable&upload_id={upload}"
            self._send(200, b"", headers={"Location": location})
        else:
            self._store(bucket, name, query, body)

    def _continue_upload(self, upload: str, body: bytes) -> None:
        if upload not in self.gcs.uploads:
            raise _Answer(410, "no such upload")
        bucket, name, query, content = self.gcs.uploads[upload]
        if self.command == "DELETE":
            del self.gcs.uploads[upload]
            self._send(499, b"")
            return
        asked = self.headers.get("Content-Range") or f"bytes 0-{len(body) - 1}/{len(body)}"
        match = re.fullmatch(r"bytes (?:(\d+)-(\d+|\*)|\*)/(\d+|\*)", asked)
        if match is None:
            raise _Answer(400, f"Content-Range: {asked}")
        start, total = match[1], match[3]
        if start is not None:
            if int(start) > len(content):
                raise _Answer(503, "bytes are missing before these")
            if total == "*" and len(body) % (1 << 18):
                raise _Answer(400, "a chunk that is not the last must be of n x 256 KiB")
            del content[int(start) :]
            content += body
        if total != "*" and len(content) >= int(total):
            self._store(bucket, name, query, bytes(content))
            del self.gcs.uploads[upload]
            return
        headers = {"Range": f"bytes=0-{len(content) - 1}"} if content else {}
        self._send(308, b"", headers=headers)

    def _store(self, bucket: str, name: str, query: dict[str, str], content: bytes) -> None:
        with self.gcs.lock:
            self._check_match(bucket, name, query)
            stored = self.gcs.put(bucket, name, content)
        self._json(stored.resource(bucket, name))

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), "application/json")

    def _send(
        self,
        status: int,
        content: bytes,
        content_type: str = "text/plain",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": content_type}.items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if getattr(self, "_breaks_off", False):
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(content)
