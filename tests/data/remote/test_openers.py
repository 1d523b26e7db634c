"""Reading over a network: ranges, retries, limits, what is not tried again, and what never stands in a message."""

from __future__ import annotations

import dataclasses
import email.utils
import io
import os
import pickle
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from lightning_gen.data.quarantine import ShardError
from lightning_gen.data.remote.local import bounded
from lightning_gen.data.remote.openers import RangeFile, UrlOpener
from lightning_gen.data.remote.retrying import (
    ChangedError,
    Interrupted,
    MissingError,
    RemoteError,
    RemoteOptions,
    Version,
)
from lightning_gen.data.remote.urls import base_name, check_listed, is_remote, join_location, parent_of, shown
from tests.harness.faulty_server import HASTY, IMPATIENT, FaultyServer

DATA = bytes(range(256)) * 1200


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "x.tar").write_bytes(DATA)
    with FaultyServer(tmp_path / "served") as running:
        yield running


def read(location: str, offset: int = 0, options: RemoteOptions = IMPATIENT) -> bytes:
    with UrlOpener(options).open(location, offset) as stream:
        return stream.readall() or b""


@pytest.mark.parametrize("kind", ["path", "http", "pipe"])
def test_every_place_gives_the_same_bytes_from_any_offset(server: FaultyServer, kind: str) -> None:
    path = server.folder / "x.tar"
    location = {"path": str(path), "http": server.url("x.tar"), "pipe": f"pipe:cat {path}"}[kind]
    for offset in (0, 1, 1000, len(DATA) - 1, len(DATA)):
        assert read(location, offset) == DATA[offset:]
    assert UrlOpener(IMPATIENT).read(location, 300, 700) == DATA[300:1000]
    assert UrlOpener(IMPATIENT).size(location) == (None if kind == "pipe" else len(DATA))
    with pytest.raises(RemoteError, match=f"ends at {len(DATA)}|ended at byte {len(DATA)} of"):
        UrlOpener(IMPATIENT).read(location, len(DATA) - 10, 20)


def test_a_range_asks_for_no_more_than_the_range(server: FaultyServer) -> None:
    UrlOpener(IMPATIENT).read(server.url("x.tar"), 300, 700)
    assert server.requests == [("x.tar", "bytes=300-999", "")]


@pytest.mark.parametrize("fault", ["reset", "truncate", "stall", "silent", "status 503", "status 429 0", "status 500"])
def test_what_passes_is_tried_again_from_where_it_ended(server: FaultyServer, fault: str) -> None:
    server.fail("x.tar", fault, fault)
    opener = UrlOpener(dataclasses.replace(HASTY if fault in ("stall", "silent") else IMPATIENT, retries=4))
    with opener.open(server.url("x.tar")) as stream:
        assert stream.readall() == DATA
        assert stream.retried >= 2  # more on a machine that is busy
    if fault in ("reset", "truncate", "stall"):
        starts = [asked for _, asked, _ in server.requests]
        assert starts[0] == "" and starts[1].startswith("bytes=") and starts[1] != "bytes=0-"
        assert "If-Range" in server.headers[1]


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("silent", "no byte came in 0.4 s"),
        ("stall", "no byte came in"),
        ("truncate", "ended at byte"),
        ("status 503", "answers 503 Service Unavailable"),
        ("drip", "only \\d+ bytes came in"),
        ("slow headers", "only \\d+ bytes came in"),
    ],
)
def test_what_does_not_pass_ends_in_bounded_time_with_the_reason(server: FaultyServer, fault: str, why: str) -> None:
    server.fail_always("x.tar", fault)
    began = time.monotonic()
    # Half of what is left comes with each attempt: progress that small does not count.
    options = HASTY
    if fault in ("truncate", "stall"):
        options = dataclasses.replace(HASTY, progress_seconds=5.0, progress_bytes=1 << 20)
    with pytest.raises(RemoteError, match=rf"x.tar cannot be read from byte \d+ on \(3 attempts\): .*{why}"):
        read(server.url("x.tar"), options=options)
    assert time.monotonic() - began < 6
    assert server.count("x.tar") == 3


@pytest.mark.parametrize("fault", ["stall", "reset"])
def test_what_came_before_a_break_is_not_asked_for_again(server: FaultyServer, fault: str) -> None:
    server.fail("x.tar", fault)
    with UrlOpener(HASTY).open(server.url("x.tar")) as stream:
        assert b"".join(iter(lambda: stream.read(1 << 20), b"")) == DATA
    assert server.requests[1] == ("x.tar", f"bytes={len(DATA) // 2}-", "")


def test_a_reset_of_the_test_server_loses_nothing_that_was_written(server: FaultyServer) -> None:
    """However slow the reader is: what a test counts on must not depend on a race."""
    (server.folder / "large.tar").write_bytes(DATA * 4)
    server.fail("large.tar", "reset")
    with UrlOpener(IMPATIENT).open(server.url("large.tar")) as stream:
        first = stream.read(1)
        time.sleep(0.3)
        assert first + (stream.readall() or b"") == DATA * 4
    assert server.requests[1] == ("large.tar", f"bytes={len(DATA) * 2}-", "")


def test_chunked_answers_are_read_and_cut_ones_noticed(server: FaultyServer) -> None:
    server.fail("x.tar", "chunks", "chunks cut")
    assert read(server.url("x.tar")) == DATA
    assert server.count("x.tar") == 1
    assert read(server.url("x.tar")) == DATA
    assert server.requests[2] == ("x.tar", f"bytes={len(DATA) // 2 + 100}-", "")


def test_progress_forgives_earlier_failures(server: FaultyServer) -> None:
    # Each answer brings half of the rest: 153 kB, 77 kB, ... and more than 4 kB each time for 6 attempts.
    server.fail("x.tar", *["truncate"] * 6)
    assert read(server.url("x.tar"), options=dataclasses.replace(IMPATIENT, progress_bytes=1 << 12)) == DATA
    server.fail("x.tar", *["truncate"] * 6)
    with pytest.raises(RemoteError):
        read(server.url("x.tar"), options=dataclasses.replace(IMPATIENT, progress_bytes=1 << 17))


@pytest.mark.parametrize(("code", "kind"), [("404", MissingError), ("403", RemoteError), ("401", RemoteError)])
def test_refusals_are_not_tried_again(server: FaultyServer, code: str, kind: type[Exception]) -> None:
    server.fail_always("x.tar", f"status {code}")
    with pytest.raises(kind, match=f"answers {code}"):
        read(server.url("x.tar"))
    assert server.count("x.tar") == 1


def test_a_server_without_ranges_is_read_from_the_start_and_passed_over(server: FaultyServer) -> None:
    server.fail("x.tar", "truncate", "no-range")
    assert read(server.url("x.tar")) == DATA
    server.fail_always("x.tar", "no-range")
    assert read(server.url("x.tar"), 100_000) == DATA[100_000:]


@pytest.mark.parametrize("first", ["truncate", "no-range"])
def test_a_file_that_changes_between_two_attempts_is_an_error(server: FaultyServer, first: str) -> None:
    server.fail("x.tar", "truncate")
    server.fail("x.tar", first if first == "no-range" else "")
    with UrlOpener(IMPATIENT).open(server.url("x.tar")) as stream:
        assert stream.read(100) == DATA[:100]
        (server.folder / "x.tar").write_bytes(DATA[::-1])
        with pytest.raises(ChangedError, match="x.tar changed while it was read"):
            stream.readall()


def test_a_file_that_shrank_is_noticed_without_any_tag(server: FaultyServer) -> None:
    server.fail("x.tar", "anonymous")
    seen = Version(len(DATA))
    with UrlOpener(IMPATIENT).open(server.url("x.tar"), 100, seen) as stream:
        (server.folder / "x.tar").write_bytes(DATA[:500])
        with pytest.raises(ChangedError, match=f"{len(DATA)} bytes before, 500 bytes"):
            stream.readall()
    (server.folder / "x.tar").write_bytes(DATA[:50])
    with UrlOpener(IMPATIENT).open(server.url("x.tar"), 100, seen) as stream, pytest.raises(ChangedError):
        stream.readall()


@pytest.mark.parametrize("kind", ["seconds", "date", "nonsense"])
def test_retry_after_is_kept_but_not_for_ever(server: FaultyServer, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    far = email.utils.formatdate(time.time() + 3600, usegmt=True)
    server.fail("x.tar", f"status 503 { {'seconds': '1000', 'date': far, 'nonsense': 'soon'}[kind] }")
    options = RemoteOptions(retries=1, backoff=0.0, max_backoff=0.4)
    assert options.pause(1, 1000.0) == 0.4
    assert read(server.url("x.tar"), options=options) == DATA
    assert waits == [0.0 if kind == "nonsense" else 0.4]
    assert RemoteOptions(max_backoff=5000).pause(1, 1000.0) == 1000.0


def test_names_with_spaces_are_asked_for_and_impossible_ones_are_told_without_their_secrets(
    server: FaultyServer,
) -> None:
    (server.folder / "a b é.tar").write_bytes(DATA)
    assert read(server.url("a b é.tar")) == DATA
    with pytest.raises(RemoteError, match="not a URL that can be asked for") as caught:
        read(server.url("x.tar?hush hush"))
    assert "hush" not in str(caught.value)


def test_pauses_double_with_jitter_up_to_the_limit() -> None:
    options = RemoteOptions(backoff=1.0, max_backoff=10.0)
    for attempt, low in enumerate([1.0, 2.0, 4.0], 1):
        drawn = {options.pause(attempt) for _ in range(20)}
        assert len(drawn) > 1 and all(low <= pause <= 2 * low for pause in drawn)
    assert options.pause(5) == 10.0


def test_limits_must_be_limits() -> None:
    for bad in ({"read_timeout": 0.0}, {"connect_timeout": -1.0}, {"retries": -1}, {"progress_seconds": 0.0}):
        with pytest.raises(ValueError, match="must"):
            RemoteOptions(**bad)  # type: ignore[arg-type]


def test_a_server_nobody_answers_at_is_given_up(server: FaultyServer) -> None:
    options = RemoteOptions(connect_timeout=0.3, retries=1, backoff=0.01)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/x.tar"
        with pytest.raises(RemoteError, match="Connection refused"):
            read(url, options=options)
        deaf.listen(0)
        with socket.create_connection(deaf.getsockname()):  # its queue is full now, and nobody takes from it
            began = time.monotonic()
            with pytest.raises(RemoteError, match="cannot be reached in time"):
                read(url, options=options)
            assert 0.6 <= time.monotonic() - began < 5


def test_redirects_are_followed_and_passwords_stay_with_their_host(server: FaultyServer) -> None:
    server.fail("y.tar", f"redirect http://localhost:{server.address.rpartition(':')[2]}/x.tar")
    os.environ["no_proxy"] = "127.0.0.1,localhost"
    assert read(f"http://me:secret@{server.address}/y.tar") == DATA
    assert server.headers[0]["Authorization"] == "Basic bWU6c2VjcmV0"
    assert "Authorization" not in server.headers[1]
    server.fail_always("loop.tar", f"redirect {server.url('loop.tar')}")
    with pytest.raises(RemoteError, match="302"):
        read(server.url("loop.tar"))


def test_secrets_never_stand_in_messages(server: FaultyServer) -> None:
    server.fail_always("x.tar", "status 403")
    for url in (f"http://me:hush@{server.address}/x.tar?token=hush#hush", f"http://hush@{server.address}/gone.tar"):
        with pytest.raises(RemoteError) as caught:
            read(url)
        assert "hush" not in str(caught.value)
        assert server.address in str(caught.value)
    with pytest.raises(RemoteError) as caught:
        read("pipe:sh -c 'exit 3' hush a-0001.tar", options=RemoteOptions(retries=0))
    assert "hush" not in str(caught.value)
    assert "pipe:sh ... a-0001.tar" in str(caught.value)
    assert "ended with code 3" in str(caught.value)
    assert "hush" not in repr(UrlOpener().open(f"http://a:hush@{server.address}/x.tar?hush"))


def test_a_command_that_hangs_is_stopped_with_its_children(tmp_path: Path) -> None:
    marker = tmp_path / "alive"
    began = time.monotonic()
    with pytest.raises(RemoteError, match=r"the command wrote nothing for 0\.4 s"):
        read(f"pipe:(sleep 1; touch {marker}) & echo x; wait", options=RemoteOptions(read_timeout=0.4, retries=0))
    assert time.monotonic() - began < 2
    time.sleep(1.0)
    assert not marker.exists()


def test_a_command_that_fails_is_run_again(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    first = f"touch {tmp_path}/once; head -c 9 {tmp_path}/x; exit 1"
    assert read(f"pipe:if [ -e {tmp_path}/once ]; then cat {tmp_path}/x; else {first}; fi") == DATA


def test_a_call_that_never_returns_is_left_behind() -> None:
    began = time.monotonic()
    with pytest.raises(Interrupted, match="no answer came in 0.1 s"):
        bounded(lambda: time.sleep(20), 0.1)
    assert time.monotonic() - began < 2
    with pytest.raises(KeyError):
        bounded(lambda: {}["x"], 1.0)  # type: ignore[misc]
    assert bounded(lambda: 5, 1.0) == 5


def test_a_local_file_on_a_dead_disk_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(DATA)
    monkeypatch.setattr("lightning_gen.data.remote.local.os.pread", lambda *args: time.sleep(20))
    with pytest.raises(RemoteError, match="no answer came in 0.4 s"):
        read(str(tmp_path / "x"), options=RemoteOptions(read_timeout=0.4, retries=0))


def test_a_range_file_reads_through_short_gaps_and_jumps_long_ones(server: FaultyServer) -> None:
    big = os.urandom(1 << 16) * 80
    (server.folder / "x.tar").write_bytes(big)
    with RangeFile.buffered(UrlOpener(IMPATIENT), server.url("x.tar")) as file:
        assert file.seek(0, io.SEEK_END) == len(big)
        for place in (0, 512, 100_000, 700_000):
            file.seek(place)
            assert file.read(600) == big[place : place + 600]
        assert server.count("x.tar") == 1
        file.seek(4_000_000)
        assert file.read(600) == big[4_000_000:4_000_600]
        file.seek(5)
        assert file.read(600) == big[5:605]
    assert [asked for _, asked, _ in server.requests] == ["", "bytes=4000000-", "bytes=5-"]


def test_openers_may_be_pickled_and_small_files_stay_small(server: FaultyServer) -> None:
    opener = pickle.loads(pickle.dumps(UrlOpener(IMPATIENT)))
    assert opener.options == IMPATIENT
    assert opener.read_all(server.url("x.tar"), len(DATA)) == DATA
    with pytest.raises(RemoteError, match="has more than 1000 bytes"):
        opener.read_all(server.url("x.tar"), 1000)


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_missing_package_is_named(scheme: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=f"need the package {package}.*pip install {package}"):
        read(f"{scheme}://bucket/x.tar")


class Bucket:
    """A store behind fsspec; made by :func:`bucket`."""

    content = DATA
    failures: list[BaseException]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> type[Bucket]:
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    Bucket.content, Bucket.failures = DATA, []

    class Store(MemoryFileSystem):
        protocol = "gs"
        known: ClassVar[dict[str, object]] = {}

        def invalidate_cache(self, path: str | None = None) -> None:
            self.known.clear()

        def info(self, path: str, **kwargs: object) -> dict[str, object]:
            if path.endswith("gone.tar"):
                raise FileNotFoundError(path)
            if Bucket.failures:
                raise Bucket.failures.pop()
            if not self.known:  # like the real ones, it remembers what it was told
                self.known.update(name=path, size=len(Bucket.content), type="file", etag=hash(Bucket.content))
            return dict(self.known)

        def _open(self, path: str, *args: object, **kwargs: object) -> io.BytesIO:
            return Flaky(Bucket.content)

    class Flaky(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= 100_000 and Bucket.failures:
                raise Bucket.failures.pop()
            return super().read(min(size or -1, 60_000))

    fsspec.register_implementation("gs", Store, clobber=True)
    monkeypatch.setattr("lightning_gen.data.remote.object_stores.PACKAGES", {"gs": "fsspec"})
    return Bucket


def test_object_stores_are_read_in_blocks_and_resumed(bucket: type[Bucket]) -> None:
    assert read("gs://bucket/x.tar", 77) == DATA[77:]
    bucket.failures = [ConnectionError("broken at https://me:hush@host/x?hush")]
    assert read("gs://bucket/x.tar") == DATA
    bucket.failures = [ConnectionError("broken at https://me:hush@host/x?sig=hush")] * 9
    with pytest.raises(RemoteError, match=r"ConnectionError: broken at https://host/x") as caught:
        read("gs://bucket/x.tar")
    assert "hush" not in str(caught.value)
    bucket.failures = []
    with pytest.raises(MissingError, match="does not exist"):
        read("gs://bucket/gone.tar")
    bucket.failures = [PermissionError("no")]
    with pytest.raises(RemoteError, match="access must be granted"):
        read("gs://bucket/x.tar")
    assert bucket.failures == []


def test_an_object_that_changes_between_two_attempts_is_an_error(bucket: type[Bucket]) -> None:
    with UrlOpener(IMPATIENT).open("gs://bucket/x.tar") as stream:
        stream.read(10)
        bucket.failures = [ConnectionError("broken")]
        bucket.content = DATA[::-1]
        with pytest.raises(ChangedError):
            while stream.read(1 << 16):
                pass


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("pipe:rm -rf /tmp/x.tar", "wants to run a command"),
        ("../x.tar", "climbs"),
        ("a/../../x.tar", "climbs"),
        ("https://host/a/../x.tar", "climbs"),
        ("file:///etc/passwd", "not file"),
        ("ftp://host/x.tar", "not ftp"),
    ],
)
def test_lists_may_not_ask_for_everything(location: str, why: str) -> None:
    for listed_in in ("https://host/manifest.json", "/data/manifest.json"):
        with pytest.raises(ShardError, match=why):
            check_listed(location, listed_in)


def test_a_remote_list_names_nothing_of_this_machine() -> None:
    for path in ("/etc/passwd", "\\\\share\\x", "C:\\x.tar", "C:x.tar"):
        with pytest.raises(ShardError, match="on this machine"):
            check_listed(path, "https://host/manifest.json")
    check_listed("/data/x.tar", "/data/manifest.json")
    for good in ("x.tar", "a/x.tar", "https://other/x.tar", "s3://bucket/x.tar", "hf://datasets/a/b/x.tar"):
        check_listed(good, "https://host/manifest.json")


def test_names_of_locations() -> None:
    assert is_remote("s3://a/b") and is_remote("pipe:cat x") and not is_remote("/a/b") and not is_remote("C:\\a")
    assert base_name("https://u:p@host/a/x.tar?sig=1#f") == "x.tar"
    assert base_name("pipe:aws s3 cp s3://b/x-0001.tar -") == "x-0001.tar"
    assert base_name("pipe:cat a") != base_name("pipe:cat b")
    assert shown("https://u:p@host:1/a/x.tar?sig=1") == "https://host:1/a/x.tar"
    assert parent_of("https://host/a/x.json?sig=1") == "https://host/a"
    assert join_location("hf://datasets/a/b/", "c/x.tar") == "hf://datasets/a/b/c/x.tar"
    assert join_location("https://host/a", "s3://b/x.tar") == "s3://b/x.tar"
