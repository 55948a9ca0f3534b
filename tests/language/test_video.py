"""Videos: frames at even distances, as images."""

from __future__ import annotations

import io
import itertools
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import sglc as sgl
from sglc.lang.frames import _spread, frames_of


def film(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (8, 8), (k, 255 - k, 7)) for k in range(count)]


def gif(path: Path, count: int) -> Path:
    first, *rest = film(count)
    first.save(path, save_all=True, append_images=rest, duration=40)
    return path


def shade(data: bytes) -> Any:
    return Image.open(io.BytesIO(data)).convert("RGB").getpixel((0, 0))


@given(st.integers(1, 200), st.integers(1, 50))
def test_frames_are_spread_evenly(total: int, count: int) -> None:
    found = _spread(range(total), count)
    assert len(found) == min(total, count) and found == sorted(set(found))
    if 1 < count < total:
        gaps = {b - a for a, b in itertools.pairwise(found)}
        assert found[0] == 0 and found[-1] == total - 1 and max(gaps) - min(gaps) <= 1


def test_an_animation_is_read(tmp_path: Path) -> None:
    path = gif(tmp_path / "a.gif", 30)
    for source in (path, str(path), path.read_bytes()):
        frames = frames_of(source, 4)
        assert len(frames) == 4 and frames[0].startswith(b"\x89PNG")
    assert abs(shade(frames[0])[0] - 0) <= 2 and abs(shade(frames[-1])[0] - 29) <= 2


def test_lists_of_frames_are_taken_as_they_are() -> None:
    assert frames_of([b"one", b"two", b"three"], 8) == [b"one", b"two", b"three"]
    assert shade(frames_of(film(9), 3)[1])[0] == 4


def test_bad_videos_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        frames_of([b"x"], 0)
    with pytest.raises(ValueError, match="no frames"):
        frames_of([], 3)
    with pytest.raises(TypeError, match="video"):
        frames_of(5, 3)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"sglc\[video\]"):
        frames_of(str(tmp_path / "film.mp4"), 3)


def test_a_program_shows_the_frames(tmp_path: Path) -> None:
    path = gif(tmp_path / "a.gif", 10)

    @sgl.function
    def look(s):  # type: ignore[no-untyped-def]
        with s.user():
            s += sgl.video(str(path), num_frames=3)
            s += "What happens?"
        s += sgl.assistant(sgl.gen("seen", max_tokens=4))

    sees = msgspec.structs.replace(sgl.Scripted().capabilities, images=True)
    state = look.run(backend=sgl.Scripted(capabilities=sees))
    state.sync()
    assert state.error() is None
    parts = state.messages()[0]["content"]
    assert [p["type"] for p in parts].count("image_url") == 3
