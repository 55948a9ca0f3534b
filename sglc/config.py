"""Settings of the whole process, as programs of the field know them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

_ELSEWHERE = {"enable_parallel_encoding": "a join appends the text of its branches, in any case"}


@dataclass
class GlobalConfig:
    """Read when a run begins; a name that is not here cannot be set, so that no setting is without effect.

    verbosity                             2: print the text after every run
    default_backend                       of runs that name none
    skip_special_tokens_in_output         answers come without special tokens
    spaces_between_special_tokens_in_out  blanks between those that are kept
    enable_precache_with_tracing          a batch computes what its rows share first
    """

    verbosity: int = 0
    default_backend: Any = None
    skip_special_tokens_in_output: bool = True
    spaces_between_special_tokens_in_out: bool = True
    enable_precache_with_tracing: bool = True

    def __setattr__(self, name: str, value: Any) -> None:
        known = type(self).__dataclass_fields__
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = (
                f"did you mean {near[0]!r}?" if near else "options of the engine are given to it: Engine(...)"
            )
            hint = _ELSEWHERE.get(name, hint)
            raise AttributeError(f"global_config.{name} = {value!r}: there is no such setting; {hint}")
        super().__setattr__(name, value)


global_config = GlobalConfig()
