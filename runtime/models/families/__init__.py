"""Every family, by architecture name. A new one is a file here and a line in this table."""

from __future__ import annotations

from runtime.models.families import deepseek_v2, llama, mistral, qwen2
from runtime.models.family import Family

FAMILIES: dict[str, Family] = {
    f.architecture: f for f in (llama.FAMILY, mistral.FAMILY, qwen2.FAMILY, deepseek_v2.FAMILY)
}
