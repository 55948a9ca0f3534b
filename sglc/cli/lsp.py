"""`sglc lsp`: what `sglc check` finds, in an editor, by the Language Server Protocol over stdin and stdout.

A file is checked when it is opened and when it is saved, each time by a `sglc check` of its own: programs are imported to
be checked, so that nothing of an older version may linger, and a file that never ends or dies takes nothing with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlparse

SECONDS = 60  # that a check may take
_SEVERITIES = {"error": 1, "warning": 2, "note": 3}
_NO_METHOD = -32601


def lsp() -> None:
    """Serve an editor: diagnostics of files with programs, when they are opened and saved."""
    sys.exit(serve(sys.stdin.buffer, sys.stdout.buffer))


def serve(read: BinaryIO, write: BinaryIO) -> int:
    """Answer messages until `exit`; the exit code is 0 if `shutdown` came before it."""
    ended = False
    for message in _messages(read):
        method, number = message.get("method", ""), message.get("id")
        document = (message.get("params") or {}).get("textDocument", {})
        if method == "exit":
            return 0 if ended else 1
        if method == "initialize":
            _send(write, {"id": number, "result": _abilities()})
        elif method == "shutdown":
            ended = True
            _send(write, {"id": number, "result": None})
        elif method in ("textDocument/didOpen", "textDocument/didSave"):
            _publish(write, document["uri"], found_in(document["uri"]))
        elif method == "textDocument/didClose":
            _publish(write, document["uri"], [])
        elif number is not None and method:
            error = {
                "code": _NO_METHOD,
                "message": f"{method} is not served; sglc lsp only gives diagnostics",
            }
            _send(write, {"id": number, "error": error})
    return 1


def found_in(uri: str) -> list[dict[str, Any]]:
    """Diagnostics of a file as the protocol has them. A file that cannot be loaded has one, in its first line."""
    file = Path(unquote(urlparse(uri).path))
    if urlparse(uri).scheme != "file" or "sglc" not in _text(file):
        return []
    command = [sys.executable, "-m", "sglc.cli", "check", str(file), "--format", "json"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            stdin=subprocess.DEVNULL,
            cwd=file.parent,
        )
    except subprocess.TimeoutExpired:
        return [
            _whole(f"the check took more than {SECONDS} seconds; does the file run something when imported?")
        ]
    if done.returncode == 2:
        told = done.stderr.strip().removeprefix("sglc: ")
        return [] if "has no program" in told else [_whole(told)]
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return [_whole(f"sglc check failed: {done.stderr.strip() or done.stdout.strip()}")]
    lines = _text(file).splitlines()
    return [_shown(item, lines) for item in found if Path(item["file"]).resolve() == file.resolve()]


def _shown(item: dict[str, Any], lines: list[str]) -> dict[str, Any]:
    number = item["line"] - 1
    line = lines[number] if 0 <= number < len(lines) else ""
    start, end = item["column"] - 1, max(item["end_column"] - 1, item["column"])
    return {
        "range": {
            "start": {"line": number, "character": _units(line[:start])},
            "end": {"line": number, "character": _units(line[:end])},
        },
        "severity": _SEVERITIES[item["severity"]],
        "code": item["code"],
        "source": "sglc",
        "message": f"{item['message']}\n{item['fix']}",
    }


def _whole(message: str) -> dict[str, Any]:
    place = {"line": 0, "character": 0}
    return {"range": {"start": place, "end": place}, "severity": 1, "source": "sglc", "message": message}


def _units(text: str) -> int:
    """UTF-16 code units, in which the protocol counts."""
    return len(text.encode("utf-16-le")) // 2


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _abilities() -> dict[str, Any]:
    from sglc import __version__

    sync = {"openClose": True, "change": 0, "save": {"includeText": False}}
    return {
        "capabilities": {"textDocumentSync": sync},
        "serverInfo": {"name": "sglc", "version": __version__},
    }


def _publish(write: BinaryIO, uri: str, found: list[dict[str, Any]]) -> None:
    params = {"uri": uri, "diagnostics": found}
    _send(write, {"method": "textDocument/publishDiagnostics", "params": params})


def _messages(read: BinaryIO) -> Iterator[dict[str, Any]]:
    """Messages with their headers, until the stream ends."""
    while True:
        length = 0
        while (header := read.readline()).strip():
            name, _, value = header.partition(b":")
            if name.strip().lower() == b"content-length":
                length = int(value)
        if not header:
            return
        message = json.loads(read.read(length))
        if isinstance(message, dict):
            yield message


def _send(write: BinaryIO, message: dict[str, Any]) -> None:
    body = json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=False).encode()
    write.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
    write.flush()
