"""Settings of the whole process, as programs of the field know them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class GlobalConfig:
    """`default_backend` is used by runs that name none; `verbosity` of 2 prints the text after every run."""

    verbosity: int = 0
    default_backend: Any = None
    skip_special_tokens_in_output: bool = True
    spaces_between_special_tokens_in_out: bool = True
    enable_precache_with_tracing: bool = True


global_config = GlobalConfig()
