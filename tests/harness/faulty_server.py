"""A real HTTP server on this machine that fails as it is told, and a fixture's worth of short patience."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import http.server
import os
import re
import socket
import struct
import termios
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote

from lightning_gen.data.remote.retrying import RemoteOptions

__all__ = ["HASTY", "IMPATIENT", "FaultyServer"]

# Quick to try again, and patient enough for a machine that is busy with other things.
IMPATIENT = RemoteOptions(read_timeout=10.0, progress_seconds=20.0, retries=2, backoff=0.01, max_backoff=0.05)
# For servers that keep silent or drip.
HASTY = dataclasses.replace(IMPATIENT, read_timeout=0.4, progress_seconds=0.6)
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        owner = self.server.owner
        name, self.close_connection = unquote(self.path.split("?")[0]).lstrip("/"), True
        fault = owner._next_fault(name)
        owner.requests.append((name, self.headers.get("Range", ""), fault))
        owner.headers.append(dict(self.headers))
        if fault == "silent":
            owner.closing.wait(20)
        elif fault.startswith("status"):
            self._status(*fault.split(maxsplit=2)[1:])
        elif fault.startswith("redirect"):
            self._status("302", fault.split()[1])
        elif fault == "html":
            self._body(b"<!DOCTYPE html><html>Sign in</html>", "", 200, {})
        else:
            self._file(owner.folder / name, fault)

    def _status(self, code: str, extra: str = "") -> None:
        self.send_response(int(code))
        if extra:
            self.send_header("Location" if code == "302" else "Retry-After", extra)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, path: Path, fault: str) -> None:
        if not path.is_file():
            return self._status("404")
        data = path.read_bytes()
        tag = '"' + hashlib.sha256(data).hexdigest()[:16] + '"'
        headers = {} if fault == "anonymous" else {"ETag": tag}
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        condition = self.headers.get("If-Range", tag)
        if match is None or fault == "no-range" or condition != tag:
            return self._body(data, fault, 200, headers)
        first, last = int(match.group(1)), int(match.group(2) or len(data) - 1)
        if first >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        last = min(last, len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self._body(data[first : last + 1], fault, 206, headers)

    def _body(self, data: bytes, fault: str, code: int, headers: dict[str, str]) -> None:
        closing = self.server.owner.closing
        if fault == "slow headers":
            for letter in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 4000:
                self.wfile.write(bytes([letter]))
                if closing.wait(0.05):
                    return
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        if fault.startswith("chunks"):
            self.send_header("Transfer-Encoding", "chunked")
        elif fault != "endless":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        half = len(data) // 2
        if fault.startswith("chunks"):
            self.wfile.write(b"%x\r\n%s\r\n%x\r\n" % (half, data[:half], len(data) - half))
            self.wfile.write(data[half : half + 100] if fault == "chunks cut" else data[half:] + b"\r\n0\r\n\r\n")
        elif fault == "drip":
            for start in range(0, len(data), 4):
                self.wfile.write(data[start : start + 4])
                if closing.wait(0.02):
                    return
        elif fault in ("stall", "reset", "truncate"):
            self.wfile.write(data[:half])
            self.wfile.flush()
            if fault == "stall":
                closing.wait(20)
            elif fault == "reset":
                _until_arrived(self.connection)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
        else:
            self.wfile.write(data)


def _until_arrived(connection: socket.socket, seconds: float = 5.0) -> None:
    """Wait until the other side's kernel has all that was written: a reset throws away what still waits on this side.

    However long the other process does not run, and as long as that takes, since its buffer may be full.
    """
    end, waiting = time.monotonic() + seconds, 1
    while waiting and time.monotonic() < end:
        time.sleep(0.002)
        waiting = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]


class _Server(http.server.ThreadingHTTPServer):
    owner: FaultyServer
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients leave in the middle; that is what they are tested for


class FaultyServer:
    """Serves the files of a folder, with ranges and ETags, until told to fail.

    Faults: ``silent``, ``stall``, ``reset``, ``truncate``, ``drip``, ``slow headers``, ``endless`` (no length),
    ``chunks`` and ``chunks cut`` (chunked, complete or not), ``anonymous`` (no ETag), ``no-range``, ``html``,
    ``status CODE [RETRY_AFTER]``, ``redirect URL``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.closing = folder, threading.Event()
        self.requests: list[tuple[str, str, str]] = []
        self.headers: list[dict[str, str]] = []
        self._faults: dict[str, list[str]] = defaultdict(list)
        self._for_ever: dict[str, str] = {}
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def url(self, name: str) -> str:
        return f"http://{self.address}/{name}"

    def fail(self, name: str, *faults: str) -> None:
        """The next requests for a file meet these faults, one each."""
        with self._lock:
            self._faults[name] += faults

    def fail_always(self, name: str, fault: str) -> None:
        """All requests for a file meet this fault."""
        self._for_ever[name] = fault

    def count(self, name: str) -> int:
        return sum(asked == name for asked, _, _ in self.requests)

    def _next_fault(self, name: str) -> str:
        with self._lock:
            return self._faults[name].pop(0) if self._faults[name] else self._for_ever.get(name, "")

    def __enter__(self) -> FaultyServer:
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="faulty-server", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
