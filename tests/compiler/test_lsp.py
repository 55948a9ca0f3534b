"""`sglc lsp`: an editor opens, saves and closes files, and is told what is wrong with them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """import sglc as sgl


@sgl.function
def ask(s, q):
    s += q + sgl.gen("a", max_tokens=9)
    s += "größer 😀 " + s["b"]
"""


class Editor:
    def __init__(self) -> None:
        command = [sys.executable, "-m", "sglc.cli", "lsp"]
        self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.server.stdin is not None and self.server.stdout is not None
        self.write, self.read = self.server.stdin, self.server.stdout

    def send(self, method: str, number: int | None = None, **params: Any) -> None:
        message = {"jsonrpc": "2.0", "method": method, "params": params}
        body = json.dumps(message if number is None else {**message, "id": number}).encode()
        self.write.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self.write.flush()

    def receive(self) -> dict[str, Any]:
        header = self.read.readline()
        assert header.startswith(b"Content-Length: ") and self.read.readline() == b"\r\n"
        found: dict[str, Any] = json.loads(self.read.read(int(header.split()[1])))
        assert found["jsonrpc"] == "2.0"
        return found

    def diagnostics(self, event: str, uri: str) -> list[dict[str, Any]]:
        self.send(f"textDocument/{event}", textDocument={"uri": uri})
        told = self.receive()
        assert told["method"] == "textDocument/publishDiagnostics" and told["params"]["uri"] == uri
        found: list[dict[str, Any]] = told["params"]["diagnostics"]
        return found


@pytest.fixture
def editor() -> Iterator[Editor]:
    made = Editor()
    try:
        yield made
    finally:
        made.server.kill()
        made.server.communicate()


def test_a_file_is_checked_when_it_is_opened_and_saved(editor: Editor, tmp_path: Path) -> None:
    file = tmp_path / "ask me.py"
    file.write_text(PROGRAM, encoding="utf-8")
    editor.send("initialize", 1, capabilities={})
    able = editor.receive()["result"]["capabilities"]["textDocumentSync"]
    assert able["openClose"] and able["save"] is not None
    editor.send("initialized")
    (found,) = editor.diagnostics("didOpen", file.as_uri())
    line = PROGRAM.splitlines()[6].encode("utf-16-le")
    start, end = (found["range"][k]["character"] for k in ("start", "end"))
    assert line[2 * start : 2 * end].decode("utf-16-le") == 's["b"]'
    assert (found["range"]["start"]["line"], found["severity"], found["code"]) == (6, 1, "SGL101")
    file.write_text(PROGRAM.replace('s["b"]', 's["a"]'), encoding="utf-8")
    assert editor.diagnostics("didSave", file.as_uri()) == []
    file.write_text("import sglc as sgl\ndef (\n", encoding="utf-8")
    (broken,) = editor.diagnostics("didSave", file.as_uri())
    assert f"{file}:2: " in broken["message"]
    assert editor.diagnostics("didClose", file.as_uri()) == []
    editor.send("textDocument/hover", 2, textDocument={"uri": file.as_uri()})
    assert editor.receive()["error"]["code"] == -32601
    editor.send("shutdown", 3)
    assert editor.receive() == {"jsonrpc": "2.0", "id": 3, "result": None}
    editor.send("exit")
    assert editor.server.wait(timeout=30) == 0


def test_files_without_programs_and_files_that_print(editor: Editor, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text("import sglc\nprint(1)\n")
    assert editor.diagnostics("didOpen", other.as_uri()) == []
    other.write_text(PROGRAM + "print(1)\n")
    assert [d["code"] for d in editor.diagnostics("didSave", other.as_uri())] == ["SGL101"]
    assert editor.diagnostics("didOpen", "untitled:Untitled-1") == []
    editor.send("exit")
    assert editor.server.wait(timeout=30) == 1
