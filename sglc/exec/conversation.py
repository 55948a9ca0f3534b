"""What a message holds, in the form in which chat models take it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

_MEDIA_TYPES = ((b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"\x89PNG", "png"))


def media_type(data: bytes) -> str:
    """Of an encoded image, by how it begins; PNG if that says nothing."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return "image/" + next((kind for begins, kind in _MEDIA_TYPES if data.startswith(begins)), "png")


def content_of(text: str, images: Sequence[bytes]) -> str | list[dict[str, Any]]:
    """The text, or with images the parts: the text, then each image as a data URL."""
    if not images:
        return text
    return [{"type": "text", "text": text}, *map(_image_part, images)]


def _image_part(data: bytes) -> dict[str, Any]:
    url = f"data:{media_type(data)};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
