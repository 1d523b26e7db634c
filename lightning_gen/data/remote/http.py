"""http and https by the standard library: ranges, validators, redirects, and a limit on every wait."""

from __future__ import annotations

import base64
import email.utils
import functools
import http.client
import io
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from email.message import Message
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from lightning_gen.data.remote.retrying import Interrupted, MissingError, Pace, RemoteError, RemoteOptions, Version
from lightning_gen.data.remote.urls import shown

__all__ = ["HttpTransport"]

_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


class _PacedSocket(io.RawIOBase):
    """What comes out of a socket, headers too, under the limits for silence and for slowness."""

    def __init__(self, sock: socket.socket, options: RemoteOptions) -> None:
        super().__init__()
        self._sock, self._raw, self._pace = sock, sock.makefile("rb", buffering=0), Pace(options)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        limit = self._pace.limit()
        self._sock.settimeout(limit)
        began = time.monotonic()
        try:
            count = self._raw.readinto(buffer)
        except TimeoutError:
            self._pace.note(max(limit, time.monotonic() - began), 0)
            raise Interrupted(f"no byte came in {limit:.1f} s") from None
        self._pace.note(time.monotonic() - began, count or 0)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Source:
    """Stands for a socket where http.client wants to make a file of it."""

    def __init__(self, sock: socket.socket, options: RemoteOptions) -> None:
        self._sock, self._options = sock, options

    def makefile(self, mode: str) -> io.BufferedReader:
        del mode
        return io.BufferedReader(_PacedSocket(self._sock, self._options), 1 << 16)


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens connections whose answers are paced."""

    def __init__(self, options: RemoteOptions) -> None:
        urllib.request.HTTPHandler.__init__(self)
        self._options, self._tls = options, ssl.create_default_context()

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(self._paced, http.client.HTTPConnection), req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        secure = functools.partial(http.client.HTTPSConnection, context=self._tls)
        return self.do_open(functools.partial(self._paced, secure), req)

    def _paced(self, make: Any, host: str, **options: Any) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection = make(host, **options)

        def response(sock: Any, *args: Any, **kwargs: Any) -> http.client.HTTPResponse:
            return http.client.HTTPResponse(_Source(sock, self._options), *args, **kwargs)  # type: ignore[arg-type]

        connection.response_class = response  # type: ignore[assignment]
        return connection


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects to http and https only; what stands in the page that redirects is not read."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        fp.close()
        return super().http_error_302(req, io.BytesIO(), code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Body:
    """The bytes of one answer."""

    def __init__(self, response: Any, start: int, version: Version) -> None:
        self._response, self.start, self.version = response, start, version

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            # What is there now: waiting for a full buffer would lose it all where the connection breaks meanwhile.
            data = self._response.read1(len(buffer))
        except (OSError, http.client.HTTPException) as error:
            raise Interrupted(_why(error)) from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._response.close()


class _Nothing:
    """The answer to a question for bytes behind the last one."""

    def __init__(self, start: int, version: Version) -> None:
        self.start, self.version = start, version

    def readinto(self, buffer: memoryview, /) -> int:
        del buffer
        return 0

    def close(self) -> None:
        """Nothing is open."""


class HttpTransport:
    """Files behind http and https.

    User and password of a URL are sent to its own host only, not to where it redirects.

    Args:
        options: the limits.
    """

    def __init__(self, options: RemoteOptions) -> None:
        self.options = options

    def open(self, url: str, start: int, stop: int | None, seen: Version) -> _Body | _Nothing:
        """Ask once.

        Args:
            url: the location.
            start: first byte.
            stop: byte behind the last one, None = the end.
            seen: the content that earlier bytes came from.

        Returns:
            The answer; it begins at 0 where the server ignores ranges.

        Raises:
            Interrupted: no connection, silence, 5xx, 408 or 429.
            RemoteError: any other status, or a body that is encoded.
        """
        request = _request(url, start, stop, seen)
        try:
            response = _director(self.options).open(request, timeout=self.options.connect_timeout)
        except urllib.error.HTTPError as error:
            return _refused(error, url, start)
        except (ValueError, http.client.InvalidURL):
            # The text of the error is the URL with everything in it.
            raise RemoteError(f"{shown(url)} is not a URL that can be asked for") from None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError):
                raise RemoteError(f"{shown(url)}: the server's certificate is not valid ({_why(error)})") from None
            raise Interrupted(_why(error)) from None
        try:
            return _Body(response, *_place(response, url, start))
        except BaseException:
            response.close()
            raise


@functools.lru_cache(maxsize=8)
def _director(options: RemoteOptions) -> urllib.request.OpenerDirector:
    director = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Handler(options),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        director.add_handler(handler)
    return director


def _request(url: str, start: int, stop: int | None, seen: Version) -> urllib.request.Request:
    parts = urlsplit(url)
    account, _, host = parts.netloc.rpartition("@")
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~")
    request = urllib.request.Request(urlunsplit((parts.scheme, host, path, parts.query, "")))
    if account:
        user, _, password = account.partition(":")
        word = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {word}")
    request.add_header("Accept-Encoding", "identity")
    if start or stop is not None:
        request.add_header("Range", f"bytes={start}-{'' if stop is None else stop - 1}")
        if seen.tag and not seen.tag.startswith("W/"):
            request.add_header("If-Range", seen.tag)
    return request


def _place(response: Any, url: str, start: int) -> tuple[int, Version]:
    """Where the body of a good answer begins, and which content it is of."""
    headers: Message = response.headers
    if headers.get("Content-Encoding", "identity") != "identity":
        raise RemoteError(
            f"{shown(url)} comes encoded ({headers['Content-Encoding']}): let the server send it as it is"
        )
    tag = headers.get("ETag") or headers.get("Last-Modified") or ""
    if response.status == 206:
        match = _RANGE.fullmatch(headers.get("Content-Range", ""))
        if match is None or match.group(1) is None or int(match.group(1)) > start:
            raise RemoteError(f"{shown(url)} answers byte {start} with the range {headers.get('Content-Range')!r}")
        size = None if match.group(3) == "*" else int(match.group(3))
        return int(match.group(1)), Version(size, tag)
    if response.status != 200:
        raise RemoteError(f"{shown(url)} answers {response.status} {response.reason}")
    length = headers.get("Content-Length", "")
    return 0, Version(int(length) if length.isdigit() else None, tag)


def _refused(error: urllib.error.HTTPError, url: str, start: int) -> _Nothing:
    code, headers = error.code, error.headers
    error.close()
    match = _RANGE.fullmatch(headers.get("Content-Range", ""))
    if code == 416 and match is not None and match.group(3) != "*":
        return _Nothing(start, Version(int(match.group(3)), headers.get("ETag", "")))
    what = f"{code} {http.client.responses.get(code, '')}".strip()
    if code >= 500 or code in (408, 429):
        raise Interrupted(f"the server answers {what}", _seconds(headers.get("Retry-After")))
    hint = {401: ": access must be granted", 403: ": access must be granted", 404: ": is the address right?"}
    kind = MissingError if code in (404, 410) else RemoteError
    raise kind(f"{shown(url)} answers {what}{hint.get(code, '')}")


def _seconds(text: str | None) -> float:
    """Retry-After as seconds from now: it is a number of them or a date."""
    if text is None:
        return 0.0
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _why(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    inner = reason if isinstance(reason, BaseException) else error
    if isinstance(inner, TimeoutError):
        return "the server cannot be reached in time"
    return str(getattr(inner, "strerror", None) or inner) or type(inner).__name__
