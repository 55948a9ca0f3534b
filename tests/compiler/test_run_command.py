"""`sglc run`: batches between files, cassettes and timelines."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sglc as sgl
from runtime.backends.cassette import Cassette
from runtime.backends.timeline import Timeline
from runtime.errors import InvalidRequest
from sglc.errors import RunError
from sglc.exec.batch_file import Journal, Row, RowError, rows_of

PROGRAM = """import sglc as sgl


@sgl.function
def ask(s, question, style="short"):
    s += f"Answer in a {style} way. Q: " + question + " A:" + sgl.gen("answer", max_tokens=12)
    s += sgl.select("mood", ["glad", "sad"])
"""


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sglc.cli", "run", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ask.py"
    path.write_text(PROGRAM)
    return path


def write_rows(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"question": f"why {k}?"}) + "\n" for k in range(count)))
    return path


def results(path: Path) -> dict[int, dict[str, Any]]:
    return {line["row"]: line for line in map(json.loads, path.read_text().splitlines())}


def test_a_batch_writes_one_line_for_each_row(file: Path, tmp_path: Path) -> None:
    rows, out = write_rows(tmp_path / "rows.jsonl", 7), tmp_path / "out.jsonl"
    done = run(str(file), "--batch", str(rows), "--out", str(out), "--backend", "scripted")
    assert done.returncode == 0, done.stderr
    found = results(out)
    assert sorted(found) == list(range(1, 8)) and "7 rows, 0 failed" in done.stdout
    assert "why 3?" in found[4]["text"] and found[4]["variables"]["answer"]
    again = run(str(file), "--batch", str(rows), "--out", str(out), "--backend", "scripted")
    assert again.returncode == 0 and results(out) == found
    assert len(out.read_text().splitlines()) == 7


def test_csv_rows_and_fixed_arguments(file: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text('question\n"one, two"\nthree\n')
    done = run(str(file), "--batch", str(rows), "--style", "long", "--backend", "scripted")
    assert done.returncode == 0, done.stderr
    texts = [r["text"] for r in results(tmp_path / "rows.results.jsonl").values()]
    assert "Q: one, two A:" in texts[0] and all("in a long way" in t for t in texts)


def test_errors_of_rows_are_kept_and_can_be_tried_again(file: Path, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text('{"question": "a"}\n{"wrong": 1}\n{"question": "b"}\n')
    done = run(str(file), "--batch", str(rows), "--out", str(out), "--backend", "scripted")
    assert done.returncode == 1 and "3 rows, 1 failed" in done.stdout
    assert "question" in results(out)[2]["error"]
    lines = len(out.read_text().splitlines())
    run(str(file), "--batch", str(rows), "--out", str(out), "--backend", "scripted")
    assert len(out.read_text().splitlines()) == lines
    run(str(file), "--batch", str(rows), "--out", str(out), "--backend", "scripted", "--retry-failed")
    assert len(out.read_text().splitlines()) == lines + 1


def test_a_changed_program_does_not_take_over_old_results(file: Path, tmp_path: Path) -> None:
    rows, out = write_rows(tmp_path / "rows.jsonl", 2), tmp_path / "out.jsonl"
    run(str(file), "--batch", str(rows), "--out", str(out), "--backend", "scripted")
    file.write_text(PROGRAM.replace(" A:", " Answer:"))
    done = run(str(file), "--batch", str(rows), "--out", str(out), "--backend", "scripted")
    assert "2 results in" in done.stderr
    assert [("Answer:" in json.loads(x)["text"]) for x in out.read_text().splitlines()] == [
        False,
        False,
        True,
        True,
    ]
    done = run(str(file), "--batch", str(rows), "--out", str(out), "--backend", "scripted", "--restart")
    assert len(out.read_text().splitlines()) == 2


def test_a_killed_batch_goes_on_where_it_was(file: Path, tmp_path: Path) -> None:
    rows, out = write_rows(tmp_path / "rows.jsonl", 1500), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "sglc.cli", "run", str(file), "--batch", str(rows), "--out", str(out)]
    deadline = time.monotonic() + 90
    for share in (0.1, 0.5, 0.9):
        child = subprocess.Popen(
            [*command, "--backend", "scripted"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while child.poll() is None and time.monotonic() < deadline:
            if out.exists() and out.read_bytes().count(b"\n") >= share * 1500:
                break
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
    done = run(str(file), "--batch", str(rows), "--out", str(out), "--backend", "scripted")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(x) for x in out.read_text().splitlines()]
    assert sorted(x["row"] for x in lines) == list(range(1, 1501))  # each once
    whole = run(
        str(file), "--batch", str(rows), "--out", str(tmp_path / "whole.jsonl"), "--backend", "scripted"
    )
    assert whole.returncode == 0 and (tmp_path / "whole.jsonl").read_bytes() == out.read_bytes()


def test_rows_are_written_as_they_end_and_sorted_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(json.dumps({"row": 9, "digest": "x", "program": "other"}) + "\n")
    journal = Journal(path, "p")
    for number in (3, 1, 2):
        journal.write(Row(number, {}, f"d{number}"), {"text": "é"})
        assert path.read_bytes().count(b"\n") == len(journal.done) + 1
    journal.sort()
    journal.write(Row(4, {}, "d4"), {"text": "later"})
    journal.close()
    assert [json.loads(x)["row"] for x in path.read_text().splitlines()] == [9, 1, 2, 3, 4]
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_a_journal_cut_anywhere_keeps_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "out.jsonl"
    journal = Journal(path, "p")
    rows = [Row(k, {"q": "é" * k}, f"d{k}") for k in range(1, 6)]
    for row in rows:
        journal.write(row, {"text": f"answer {row.number}" * row.number})
    journal.close()
    data = path.read_bytes()
    kept = data[: cut % (len(data) + 1)]
    path.write_bytes(kept)
    again = Journal(path, "p")
    whole = kept.count(b"\n")
    assert again.done == {(k, f"d{k}") for k in range(1, whole + 1)}
    again.write(rows[4], {"text": "new"})
    again.close()
    assert [json.loads(x)["row"] for x in path.read_text().splitlines()] == [*range(1, whole + 1), 5]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--batch", "{tmp}/none.jsonl"], "there is no such file"),
        (["--out", "{tmp}/x.jsonl"], "belong to --batch"),
        (["--batch", "{tmp}/bad.jsonl"], "bad.jsonl:2: this is not JSON"),
        (["--batch", "{tmp}/rows.jsonl", "--out", "{tmp}/rows.jsonl"], "that is the file of the rows"),
        (["--replay", "{tmp}/none.jsonl", "--question", "a"], "there is no such file"),
        (["--replay", "{tmp}/rows.jsonl", "--question", "a"], "is not a cassette"),
    ],
)
def test_mistakes_are_told_in_one_line(words: list[str], told: str, file: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 1)
    (tmp_path / "bad.jsonl").write_text('{"question": "a"}\n{"question\n')
    done = run(str(file), *(w.format(tmp=tmp_path) for w in words))
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_rows_that_are_no_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("[1, 2]\n")
    with pytest.raises(RowError, match="row 1"):
        list(rows_of(path))


# -- cassettes ------------------------------------------------------------------------------------------------------


@sgl.function
def story(s, hero):  # type: ignore[no-untyped-def]
    s += "Once " + hero + sgl.gen("one", max_tokens=5)
    s += " then " + sgl.gen("two", max_tokens=5, temperature=0.9)
    forks = s.fork(2)
    for k, f in enumerate(forks):
        f += f" end {k}: " + sgl.gen("end", max_tokens=4)
    forks.join()
    s += s["end"][0] + sgl.select("mood", ["glad", "sad"])


@sgl.function
def edited(s, hero):  # type: ignore[no-untyped-def]
    s += "Once " + hero + sgl.gen("one", max_tokens=5)
    s += " and then " + sgl.gen("two", max_tokens=5, temperature=0.9)


def seen(state: Any) -> Any:
    state.sync()
    assert state.error() is None
    variables = state.sink.variables()
    return state.text(), variables, {n: state.get_meta_info(n) for n in ("one", "two", "mood")}


@pytest.mark.parametrize("stream", [False, True])
def test_a_replay_is_equal_and_needs_no_model(tmp_path: Path, stream: bool) -> None:
    path = tmp_path / "calls.jsonl"
    recorded = Cassette(path, sgl.Scripted())
    first = story.run("a fox", backend=recorded, stream=stream)
    chunks = list(first.text_iter()) if stream else []
    expected = seen(first)
    asyncio.run(recorded.close())
    assert (recorded.hits, recorded.misses) == (0, 5)
    for runnable in (story, story.compile()):
        replayed = Cassette(path)
        state = runnable.run("a fox", backend=replayed, stream=stream)
        if stream:
            told = list(state.text_iter())
            assert "".join(told) == "".join(chunks) and (told == chunks or runnable is not story)
        text, variables, metas = seen(state)
        assert (text, variables) == expected[:2]
        assert {n: _without_id(m) for n, m in metas.items()} == {
            n: _without_id(m) for n, m in expected[2].items()
        }
        assert (replayed.hits, replayed.misses) == (5, 0)


def _without_id(meta: Any) -> Any:
    return (
        {k: v for k, v in meta.items() if k not in ("id", "e2e_latency")} if isinstance(meta, dict) else meta
    )


def test_after_an_edit_only_what_follows_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    recorded = Cassette(path, sgl.Scripted())
    seen_one = story.run("a fox", backend=recorded)["one"]
    asyncio.run(recorded.close())
    again = Cassette(path, sgl.Scripted())
    state = edited.run("a fox", backend=again)
    assert state["one"] == seen_one and state["two"]
    assert (again.hits, again.misses) == (1, 1)
    alone = edited.run("a fox", backend=Cassette(tmp_path / "calls.jsonl"))
    alone.sync()
    assert alone.error() is None  # the second call has been added to the file


def test_what_was_not_recorded_is_told(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    story.run("a fox", backend=Cassette(path, sgl.Scripted())).sync()
    with pytest.raises(RunError, match="has no answer to the call after 'Once a wolf'"):
        story.run("a wolf", backend=Cassette(path))
    with pytest.raises(InvalidRequest, match="no recorded calls"):
        Cassette(tmp_path / "none.jsonl")


def test_a_cassette_survives_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    story.run("a fox", backend=Cassette(path, sgl.Scripted())).sync()
    data = path.read_bytes()
    os.truncate(path, len(data) - 7)
    again = Cassette(path, sgl.Scripted())
    state = story.run("a fox", backend=again)
    state.sync()
    assert state.error() is None and (again.hits, again.misses) == (4, 1)


def test_record_and_replay_on_the_command_line(file: Path, tmp_path: Path) -> None:
    words = [str(file), "--question", "why?", "--json"]
    tape = str(tmp_path / "tape.jsonl")
    first = run(*words, "--backend", "scripted", "--record", tape)
    again = run(*words, "--replay", tape)
    assert first.returncode == again.returncode == 0, again.stderr
    assert json.loads(first.stdout) == json.loads(again.stdout)
    assert "0 of 2 calls from" in first.stderr and "2 of 2 calls from" in again.stderr


# -- timelines ------------------------------------------------------------------------------------------------------


def test_a_timeline_has_a_lane_for_each_state() -> None:
    watch = Timeline(sgl.Scripted())
    seen(story.run("a fox", backend=watch))
    names = [s.name.split()[0] for s in watch.spans]
    assert sorted(names) == ["end", "end", "one", "select", "two"]
    lanes = {n: {s.lane for s in watch.spans if s.name.startswith(n)} for n in ("one", "two", "end")}
    assert lanes["one"] == lanes["two"] and len(lanes["end"]) == 2
    for span in watch.spans:
        assert 0 <= span.start <= span.end and (span.first is None or span.start <= span.first <= span.end)


def test_a_timeline_is_written(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    done = run(str(file), "--question", "why?", "--backend", "scripted", "--timeline", str(path))
    assert done.returncode == 0, done.stderr
    events = json.loads(path.read_text())["traceEvents"]
    spans = [e for e in events if e["ph"] == "X"]
    assert len(spans) == 2 and all(e["dur"] >= 1 and e["ts"] >= 0 for e in spans)
    assert spans[0]["name"].startswith("answer ") and "ask.py:6" in spans[0]["name"]
    assert {e["args"]["name"] for e in events if e["ph"] == "M"} == {"state 0"}
