"""An S3-compatible store in memory, which honours conditional PUT or ignores it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit
from urllib.request import Request, urlopen
from xml.sax.saxutils import escape, unescape

if TYPE_CHECKING:
    from collections.abc import Iterator

BUCKET = "bucket"


@dataclass(frozen=True)
class ObjectStore:
    """A running store with one bucket."""

    address: str

    @property
    def options(self) -> dict[str, str]:
        """Storage options of a lake in it."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "here",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "nobody-asks",
        }

    def keys(self) -> list[str]:
        """The names of its objects."""
        with urlopen(f"{self.address}/{BUCKET}") as answer:  # noqa: S310 - of this machine
            return re.findall(r"<Key>(.*?)</Key>", answer.read().decode())

    def put(self, key: str) -> None:
        """Write an object."""
        urlopen(Request(f"{self.address}/{BUCKET}/{key}", data=b"x", method="PUT")).close()  # noqa: S310 - of this machine

    def ignore_conditions(self) -> None:
        """From now on, accept a PUT with ``If-None-Match: *`` of an existing object."""
        urlopen(Request(self.address, method="PATCH")).close()  # noqa: S310 - of this machine

    @property
    def toml(self) -> str:
        """Settings of a project whose lake is in it."""
        options = "\n".join(f'{name} = "{value}"' for name, value in self.options.items())
        return f'[project]\nlake = "s3://{BUCKET}/lake"\n[project.storage_options]\n{options}\n'


@contextmanager
def running_store(*, honours_conditions: bool) -> Iterator[ObjectStore]:
    """Run a store while the context lasts, in a process of its own: deltalake holds the interpreter while it waits for some answers.

    Args:
        honours_conditions: Whether a PUT with ``If-None-Match: *`` of an existing object is refused.
    """
    command = [sys.executable, __file__, "honours" if honours_conditions else "ignores"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield ObjectStore(f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.kill()  # it has nothing to tidy up


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *, honours_conditions: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.honours_conditions = honours_conditions
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}  # of uploads that are not complete
        self.lock = threading.Lock()


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        key, query = self._asked()
        if not key:
            self._answer(200, self._listing(query))
        elif (body := self.server.objects.get(key)) is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        elif (span := self.headers.get("Range", "").removeprefix("bytes=")) and "-" in span:
            first, _, last = span.partition("-")
            begin = int(first) if first else max(0, len(body) - int(last))
            end = min(int(last), len(body) - 1) if first and last else len(body) - 1
            self._answer(206, body[begin : end + 1], **{"Content-Range": f"bytes {begin}-{end}/{len(body)}"})
        else:
            self._answer(200, body)

    do_HEAD = do_GET  # noqa: N815 - name of the base class

    def do_PUT(self) -> None:
        key, query = self._asked()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "uploadId" in query:
            self.server.parts[query["uploadId"][0]][int(query["partNumber"][0])] = body
            self._answer(200)
            return
        time.sleep(0.02)  # as over a network
        with self.server.lock:
            if self.server.honours_conditions and self.headers.get("If-None-Match") == "*" and key in self.server.objects:
                self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
            self.server.objects[key] = body
        self._answer(200)

    def do_PATCH(self) -> None:
        self.server.honours_conditions = False
        self._answer(200)

    def do_POST(self) -> None:
        """Begin or complete an upload of several parts, or delete several objects."""
        key, query = self._asked()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if "uploads" in query:
            upload = f"upload-{len(self.server.parts)}"
            self.server.parts[upload] = {}
            self._answer(200, self._upload("Initiate", key, f"<UploadId>{upload}</UploadId>"))
            return
        if "uploadId" in query:
            parts = self.server.parts[query["uploadId"][0]]
            self.server.objects[key] = b"".join(parts[number] for number in sorted(parts))
            self._answer(200, self._upload("Complete", key, '<ETag>"complete"</ETag>'))
            return
        keys = re.findall(r"<Key>(.*?)</Key>", body)
        for name in keys:
            self.server.objects.pop(unescape(name), None)
        deleted = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in keys)
        self._answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())

    @staticmethod
    def _upload(step: str, key: str, more: str) -> bytes:
        name = f"{step}MultipartUploadResult"
        return f"<{name}><Bucket>{BUCKET}</Bucket><Key>{escape(key)}</Key>{more}</{name}>".encode()

    def _asked(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        return unquote(parts.path).removeprefix(f"/{BUCKET}").lstrip("/"), parse_qs(parts.query, keep_blank_values=True)

    def _listing(self, query: dict[str, list[str]]) -> bytes:
        prefix, after, delimiter = (query.get(name, [""])[0] for name in ("prefix", "start-after", "delimiter"))
        files, folders = [], set()
        for key, body in sorted(self.server.objects.items()):
            if not key.startswith(prefix) or key <= after:
                continue
            if delimiter and delimiter in key[len(prefix) :]:
                folders.add(prefix + key[len(prefix) :].partition(delimiter)[0] + delimiter)
                continue
            files.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2024-05-01T00:00:00.000Z</LastModified>"
                f'<ETag>"{hash(body)}"</ETag><Size>{len(body)}</Size></Contents>'
            )
        common = "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders))
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(files)}{common}</ListBucketResult>".encode()

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hash(body)}"')
        self.send_header("Last-Modified", formatdate(usegmt=True))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    with _Server(honours_conditions=sys.argv[1] == "honours") as running:
        sys.stdout.write(f"{running.server_port}\n")
        sys.stdout.flush()
        running.serve_forever()
