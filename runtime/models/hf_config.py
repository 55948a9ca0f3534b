"""config.json with types, and a record of what was read.

A key that changes the arithmetic and was read by nobody is an error: better no model than a wrong one.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from runtime.errors import ModelError

_NONE = object()

# Keys that say nothing about the arithmetic of generation: bookkeeping, training, output options.
HARMLESS = frozenset(
    [
        "architectures",
        "model_type",
        "torch_dtype",
        "dtype",
        "transformers_version",
        "_name_or_path",
        "use_cache",
        "initializer_range",
        "initializer_factor",
        "pretraining_tp",
        "bos_token_id",
        "pad_token_id",
        "sep_token_id",
        "decoder_start_token_id",
        "attention_dropout",
        "hidden_dropout",
        "embd_pdrop",
        "resid_pdrop",
        "resid_dropout",
        "hidden_dropout_prob",
        "classifier_dropout",
        "summary_type",
        "use_return_dict",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "gradient_checkpointing",
        "tokenizer_class",
        "id2label",
        "label2id",
        "problem_type",
        "finetuning_task",
        "task_specific_params",
        "is_encoder_decoder",
        "is_decoder",
        "add_cross_attention",
        "cross_attention_hidden_size",
        "tie_encoder_decoder",
        "chunk_size_feed_forward",
        "pruned_heads",
        "torchscript",
        "use_bfloat16",
        "tf_legacy_loss",
        "cache_implementation",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "auto_map",
        "license",
        "name",
        "output_router_logits",
        "router_aux_loss_coef",
        "aux_loss_alpha",
        "seq_aux",
        "ep_size",
        "unsloth_version",
        "unsloth_fixed",
        "quantization_note",
        "max_length",
        "min_length",
        "do_sample",
        "early_stopping",
        "num_beams",
        "temperature",
        "top_k",
        "top_p",
        "repetition_penalty",
        "prefix",
        "bad_words_ids",
        "num_return_sequences",
        "length_penalty",
        "no_repeat_ngram_size",
        "diversity_penalty",
        "num_beam_groups",
        "encoder_no_repeat_ngram_size",
        "typical_p",
        "remove_invalid_values",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "suppress_tokens",
        "begin_suppress_tokens",
        "exponential_decay_length_penalty",
        "output_scores",
        "return_dict_in_generate",
    ]
)


class HFConfig:
    """Typed access to the keys of config.json. `context` names the file in messages."""

    def __init__(self, data: dict[str, Any], source: str = "config.json") -> None:
        self.data = data
        self.source = source
        self._read: set[str] = set()

    @classmethod
    def load(cls, folder: Path, overrides: dict[str, Any] | None = None) -> HFConfig:
        file = folder / "config.json"
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelError(
                f"{folder} has no config.json; --model-path must name a Hugging Face model folder"
            ) from None
        except (OSError, ValueError) as error:
            raise ModelError(f"{file} cannot be read as JSON: {error}") from None
        if not isinstance(data, dict):
            raise ModelError(f"{file} holds a {type(data).__name__} where a JSON object is needed")
        return cls({**data, **(overrides or {})}, str(file))

    def get(self, key: str, default: Any = None) -> Any:
        self._read.add(key)
        value = self.data.get(key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        value = self.get(key, _NONE)
        if value is _NONE:
            raise ModelError(f"{self.source} lacks {key!r}, which {self.architecture} needs")
        return value

    def expect(self, key: str, *allowed: Any) -> None:
        """Accept the key only with a value that changes nothing."""
        value = self.get(key, allowed[0])
        if value not in allowed:
            raise ModelError(
                f"{self.source} sets {key!r} to {value!r}, which {self.architecture} does not support here; "
                f"supported: {', '.join(map(repr, allowed))}"
            )

    @property
    def architecture(self) -> str:
        names = self.data.get("architectures") or [self.data.get("model_type", "?")]
        return str(names[0])

    def check_all_read(self) -> None:
        """Raise ModelError for keys that nobody read and that are not known to be harmless."""
        unread = [
            k
            for k, v in self.data.items()
            if k not in self._read and k not in HARMLESS and v not in (None, False, [], {})
        ]
        if unread:
            key = unread[0]
            more = f" (and {len(unread) - 1} more: {', '.join(unread[1:6])})" if len(unread) > 1 else ""
            raise ModelError(
                f"{self.source} has {key!r} = {self.data[key]!r}{more}, which this version does not know for "
                f"{self.architecture} and which may change the result; remove the key if it does not"
            )


def rope_parameters(config: HFConfig, kind: str = "full_attention") -> dict[str, Any]:
    """Rotary settings from either form: `rope_theta` and `rope_scaling`, or `rope_parameters`."""
    given = config.get("rope_parameters")
    theta, scaling = config.get("rope_theta", 10_000.0), config.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise ModelError(f"{config.source}: rope_scaling is {scaling!r}, but must be an object or null")
    if given:
        given = given.get(kind, given)
        return {"rope_theta": theta, **given}
    return {"rope_theta": theta, **scaling}


def yarn_scale(factor: float, m: float = 1.0) -> float:
    """What attention is scaled by where positions are stretched by `factor`."""
    return 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0


def rope_frequencies(
    config: HFConfig, dim: int, kind: str = "full_attention"
) -> tuple[tuple[float, ...], float]:
    """Frequencies for `dim` coordinates and the factor on cos and sin.

    Types: default, linear, dynamic (as it is below its trained length), llama3, yarn. Source of yarn: arXiv 2309.00071.
    """
    p = rope_parameters(config, kind)
    type_ = p.get("rope_type", p.get("type", "default"))
    base = [float(p["rope_theta"]) ** (-2 * i / dim) for i in range(dim // 2)]
    factor = float(p.get("factor", 1.0))
    if type_ in ("default", "dynamic"):
        return tuple(base), 1.0
    if type_ == "linear":
        return tuple(f / factor for f in base), 1.0
    if type_ == "llama3":
        low, high = float(p["low_freq_factor"]), float(p["high_freq_factor"])
        old = float(p["original_max_position_embeddings"])
        out = []
        for f in base:
            wavelength = 2 * math.pi / f
            if wavelength < old / high:
                out.append(f)
            elif wavelength > old / low:
                out.append(f / factor)
            else:
                smooth = (old / wavelength - low) / (high - low)
                out.append((1 - smooth) * f / factor + smooth * f)
        return tuple(out), 1.0
    if type_ == "yarn":
        old = float(p.get("original_max_position_embeddings") or config.need("max_position_embeddings"))
        fast, slow = float(p.get("beta_fast", 32)), float(p.get("beta_slow", 1))

        def dimension(rotations: float) -> float:
            return dim * math.log(old / (rotations * 2 * math.pi)) / (2 * math.log(float(p["rope_theta"])))

        low_d, high_d = dimension(fast), dimension(slow)
        if p.get("truncate", True):
            low_d, high_d = math.floor(low_d), math.ceil(high_d)
        low_d, high_d = max(low_d, 0), min(high_d, dim - 1)
        out = []
        for i, f in enumerate(base):
            ramp = min(1.0, max(0.0, (i - low_d) / max(high_d - low_d, 0.001)))
            out.append(f / factor * ramp + f * (1 - ramp))

        attention = p.get("attention_factor")
        if attention is None:
            m, all_ = p.get("mscale"), p.get("mscale_all_dim")
            attention = yarn_scale(factor, m) / yarn_scale(factor, all_) if m and all_ else yarn_scale(factor)
        return tuple(out), float(attention)
    raise ModelError(
        f"{config.source}: rope type {type_!r} is not supported; supported: default, linear, dynamic, llama3, yarn"
    )
