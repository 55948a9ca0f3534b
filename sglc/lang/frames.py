"""The frames of a video: sampled evenly, as encoded images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ANIMATIONS = frozenset({".gif", ".webp", ".apng", ".png"})


def frames_of(source: Any, count: int) -> list[bytes]:
    """`count` frames, from the first to the last, as PNG; all of them if there are fewer.

    source  a path, the bytes of a file, or a list of frames (encoded bytes, or PIL images)

    Raises ValueError for a count below one or a source without frames, ImportError, saying what to install, if nothing here
    can read it.
    """
    if count < 1:
        raise ValueError(f"video(num_frames={count}): ask for at least one frame")
    if isinstance(source, (list, tuple)):
        frames = [f if isinstance(f, bytes) else _png(f) for f in _spread(source, count)]
    elif isinstance(source, (str, Path)) and Path(source).suffix.lower() in ANIMATIONS:
        frames = _of_animation(Path(source).read_bytes(), count)
    elif isinstance(source, (str, Path)):
        frames = _of_film(str(source), count)
    elif isinstance(source, bytes):
        animated = source.startswith((b"GIF8", b"\x89PNG")) or source[8:12] == b"WEBP"
        frames = _of_animation(source, count) if animated else _of_film(io.BytesIO(source), count)
    else:
        raise TypeError(f"video({type(source).__name__}): give a path, bytes or a list of frames")
    if not frames:
        raise ValueError(
            f"video({source if isinstance(source, (str, Path)) else 'bytes'}): there are no frames in it"
        )
    return frames


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """`count` of them at even distances, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[len(items) // 2]]
    return [items[round(k * (len(items) - 1) / (count - 1))] for k in range(count)]


def _png(frame: Any) -> bytes:
    buffer = io.BytesIO()
    frame.save(buffer, format="PNG")
    return buffer.getvalue()


def _of_animation(data: bytes, count: int) -> list[bytes]:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("reading frames needs Pillow: pip install 'sglc[video]'") from None
    with Image.open(io.BytesIO(data)) as film:
        found: list[bytes] = []
        for number in _spread(range(getattr(film, "n_frames", 1)), count):
            film.seek(number)
            found.append(_png(film.convert("RGB")))
        return found


def _of_film(source: Any, count: int) -> list[bytes]:
    try:
        import av
    except ImportError:
        raise ImportError(
            "reading a film needs PyAV: pip install 'sglc[video]', or give a list of frames"
        ) from None
    with av.open(source) as film:
        stream = film.streams.video[0]
        total = stream.frames or sum(1 for _ in film.decode(stream))
        film.seek(0)
        wanted = set(_spread(range(total), count))
        return [_png(f.to_image()) for k, f in enumerate(film.decode(stream)) if k in wanted]
