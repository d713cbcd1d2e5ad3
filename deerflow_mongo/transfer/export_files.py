"""The frame of an export file: lines of JSON, compressed by gzip, between a header and a trailer.

Each line is an object with one key, which names what the line is. What a row is, is in
`contract/bulk_rows.py`; the lines of checkpoints are in `exported_checkpoints.py`. The README beside this
module documents the format.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final, cast

from ..contract.errors import StorageConfigError

FORMAT: Final = "deerflow-mongo export"
FORMAT_VERSION: Final = 1
STANDARD_STREAM: Final = "-"
"""In place of a file's name: standard output, or standard input."""

HEADER: Final = "header"
TRAILER: Final = "end"

MAX_LINE_BYTES: Final = 256 * 1024 * 1024
"""More than any line has: a row of 16 MiB, each character of which JSON writes as six or twelve."""

_COMPRESSION: Final = 4
"""A tenth larger than with the default, 6, and twice as fast."""

_BUFFER_BYTES: Final = 1024 * 1024

_to_json = json.JSONEncoder(separators=(",", ":")).encode


# -- writing ---------------------------------------------------------------------------------------


class ExportWriter:
    """Writes the lines of a file; after the last one comes `finish`."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._gzip = gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=_COMPRESSION, mtime=0)
        self._lines = 0

    def write(self, name: str, value: object) -> None:
        self._gzip.write(f"{_to_json({name: value})}\n".encode("ascii"))
        self._lines += 1

    def write_header(self, contents: Mapping[str, Any]) -> None:
        self.write(HEADER, {"format": FORMAT, "version": FORMAT_VERSION, **contents})

    def finish(self, contents: Mapping[str, Any]) -> None:
        self.write(TRAILER, {"lines": self._lines + 1, **contents})
        self._gzip.close()


@contextlib.contextmanager
def writing(name: str, *, overwrite: bool) -> Generator[ExportWriter]:
    """A file that has its name once it is complete, and that only its owner can read.

    Raises `StorageConfigError` for one that exists, unless it may be overwritten.
    """
    if name == STANDARD_STREAM:
        if sys.stdout.isatty():
            raise StorageConfigError(
                "- is standard output, and that is a terminal: name a file, or use a pipe"
            )
        yield ExportWriter(sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    path = Path(name).expanduser()
    _check_free(path, overwrite=overwrite)
    with _explained(path, "written"):
        temporary = tempfile.NamedTemporaryFile(  # noqa: SIM115 - closed below, before it is renamed
            dir=path.parent, prefix=f".{path.name}.", suffix=".partial", delete=False
        )
    try:
        with temporary as file:
            yield ExportWriter(cast("IO[bytes]", file))
            with _explained(path, "written"):
                file.flush()
                os.fsync(file.fileno())
        _check_free(path, overwrite=overwrite)
        with _explained(path, "written"):
            Path(temporary.name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary.name).unlink()
        raise


def _check_free(path: Path, *, overwrite: bool) -> None:
    if path.is_dir():
        raise StorageConfigError(f"{path} is a folder")
    if path.exists() and not overwrite:
        raise StorageConfigError(f"{path} exists: name another file, or overwrite it with --force")


@contextlib.contextmanager
def _explained(path: Path, what: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise StorageConfigError(f"{path} cannot be {what}: {error.strerror or error}") from error


# -- reading ---------------------------------------------------------------------------------------


class ExportReader:
    """Reads the lines of a file, in which the header is checked at once, and the trailer at the end."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._name = name
        self._stream = stream
        self._lines = 0
        self._gzip = gzip.GzipFile(fileobj=stream, mode="rb")
        self.header = self._checked_header()
        self.trailer: Mapping[str, Any] | None = None
        self.line_bytes = 0
        """The size of the last line."""

    @property
    def compressed_bytes_read(self) -> int:
        return self._stream.tell()

    def lines(self) -> Iterator[tuple[str, Any]]:
        """Name and value of each line between header and trailer. Raises `StorageConfigError`."""
        for line in self._raw_lines():
            name, value = self._parsed(line)
            if name == TRAILER:
                self._check_trailer(value)
                return
            yield name, value
        raise StorageConfigError(f"{self._name} ends before its trailer, after {self._lines:,} lines")

    def check_to_the_end(self) -> None:
        """Read everything, and the content of the trailer alone. Raises `StorageConfigError`."""
        last = b""
        for line in self._raw_lines():
            last = line
        name, value = self._parsed(last) if last else ("", None)
        if name != TRAILER:
            raise StorageConfigError(f"{self._name} ends before its trailer, after {self._lines:,} lines")
        self._check_trailer(value)

    def _raw_lines(self) -> Iterator[bytes]:
        while True:
            try:
                line = self._gzip.readline(MAX_LINE_BYTES)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise StorageConfigError(
                    f"{self._name} is incomplete or damaged after {self._lines:,} lines: {error}"
                ) from error
            if not line:
                return
            self._lines += 1
            self.line_bytes = len(line)
            yield line

    def _parsed(self, line: bytes) -> tuple[str, Any]:
        try:
            [(name, value)] = cast("dict[str, Any]", json.loads(line)).items()
        except (ValueError, AttributeError, RecursionError) as error:
            raise StorageConfigError(
                f"line {self._lines:,} of {self._name} is no object with one key"
            ) from error
        return name, value

    def _checked_header(self) -> Mapping[str, Any]:
        not_ours = f"{self._name} is no export file of deerflow-mongo"
        try:
            line = self._gzip.readline(MAX_LINE_BYTES)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise StorageConfigError(f"{not_ours}: it is not compressed by gzip, or empty") from error
        self._lines = 1
        try:
            header: Any = json.loads(line)[HEADER]
            version: Any = header["version"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StorageConfigError(not_ours) from error
        if header.get("format") != FORMAT or type(version) is not int:
            raise StorageConfigError(not_ours)
        if version > FORMAT_VERSION:
            raise StorageConfigError(
                f"{self._name} has format {version}, and this release reads formats up to {FORMAT_VERSION}: "
                "upgrade deerflow-mongo"
            )
        return header

    def _check_trailer(self, trailer: Any) -> None:
        if not isinstance(trailer, dict) or cast("dict[str, Any]", trailer).get("lines") != self._lines:
            raise StorageConfigError(f"{self._name} has lost lines: its trailer counts others than it has")
        self.trailer = cast("dict[str, Any]", trailer)


@contextlib.contextmanager
def reading(name: str) -> Generator[ExportReader]:
    """A file, or standard input. Raises `StorageConfigError` where it cannot be read, or is none of ours."""
    if name == STANDARD_STREAM:
        if sys.stdin.isatty():
            raise StorageConfigError(
                "- is standard input, and that is a terminal: name a file, or use a pipe"
            )
        yield ExportReader(sys.stdin.buffer, "standard input")
        return
    path = Path(name).expanduser()
    with _explained(path, "read"):
        file = path.open("rb", buffering=_BUFFER_BYTES)
    with file:
        yield ExportReader(cast("IO[bytes]", file), str(path))


def check_file(name: str) -> int | None:
    """The size of a file that is complete, by its header, its checksum and its trailer.

    None for a stream that can be read only once. Raises `StorageConfigError`.
    """
    path = Path(name).expanduser()
    if name == STANDARD_STREAM or (path.exists() and not path.is_file() and not path.is_dir()):
        return None
    with reading(name) as reader:
        reader.check_to_the_end()
    return path.stat().st_size
