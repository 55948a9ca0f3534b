"""Every option of the engine and the server: one field is one flag with one help text.

Flags become a config once, at the start; nobody looks at them again.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from runtime.errors import InvalidRequest, ModelError
from runtime.foreign_flags import own_options


def _option(default: Any, help: str, *aliases: str) -> Any:
    return field(default=default, metadata={"help": help, "aliases": aliases})


def embedded_model_path() -> Path:
    """The folder of the model that ships with the package; ModelError if the package lacks it."""
    spec = importlib.util.find_spec("stdlib")
    for place in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(place) / "tiny" / "weights"
        if (folder / "config.json").exists():
            return folder
    raise ModelError(
        "no model was named and the embedded one is not installed; name a model folder with --model-path"
    )


def find_folder(model_path: str | Path) -> Path:
    """The folder, or ModelError with a near miss if there is none."""
    if len(str(model_path)) > 4096 or "\0" in str(model_path):
        raise ModelError(
            f"model path {str(model_path)[:64]!r}... is none: it is too long, or holds a zero byte"
        )
    try:
        folder = Path(model_path).expanduser()
        if folder.is_dir():
            return folder
        folder.lstat()
    except FileNotFoundError:
        pass
    except (
        OSError,
        RuntimeError,
    ) as error:  # a name that is too long, a folder that may not be read, no such user
        raise ModelError(f"model path {str(model_path)[:200]!r} cannot be looked at: {error}") from None
    if folder.exists():
        raise ModelError(f"model path {str(model_path)!r} is a file; name the folder that holds config.json")
    try:
        names = [p.name for p in folder.parent.iterdir() if p.is_dir()]
    except OSError:  # there is no such folder either, or it may not be read
        names = []
    near = difflib.get_close_matches(folder.name, names, n=1)
    hint = (
        f"; did you mean {str(folder.parent / near[0])!r}?"
        if near
        else "; name a local Hugging Face model folder"
    )
    raise ModelError(f"model folder {str(model_path)!r} does not exist{hint}")


@dataclass(frozen=True)
class EngineConfig:
    """Options of an engine. `resolve` fills in what depends on the machine and the model."""

    model_path: str | None = _option(
        None, "Model folder (Hugging Face layout). Default: the embedded model.", "--model"
    )
    tokenizer_path: str | None = _option(None, "Folder of the tokenizer, if not the model's.")
    served_model_name: str | None = _option(
        None, "Name of the model in the OpenAI API. Default: the folder's name."
    )
    device: str = _option("auto", "cpu, cuda or auto.")
    dtype: str = _option("auto", "auto, float32, bfloat16 or float16.")
    load_format: str = _option(
        "auto", "auto or safetensors reads the weights; dummy takes random ones of the same shapes."
    )
    context_length: int | None = _option(None, "Tokens of prompt and answer together. Default: the model's.")
    json_model_override_args: str = _option("{}", "JSON object merged into config.json.")
    mem_fraction_static: float = _option(0.88, "Share of GPU memory for weights and KV pool.")
    max_total_tokens: int | None = _option(None, "Tokens of the KV pool. Default: what fits.")
    page_size: int = _option(1, "Tokens of a KV page.")
    attention_backend: str = _option("auto", "auto, triton, flashinfer or torch.")
    sampling_backend: str = _option("auto", "auto, triton, flashinfer or torch; each draws the same tokens.")
    kv_cache_dtype: str = _option("auto", "Of KV memory: auto (the model's), fp8_e4m3 or fp8_e5m2.")
    disable_cuda_graph: bool = _option(False, "Launch every decode step kernel by kernel.")
    cuda_graph_max_bs: int | None = _option(None, "Largest decode batch that is captured. Default: all.")
    disable_overlap_schedule: bool = _option(
        False, "Wait for each step before the next one is planned; on a CPU this is always so."
    )
    tensor_parallel_size: int = _option(
        1, "GPUs (or, on a CPU, processes) that each hold a part of every layer.", "--tp-size", "--tp"
    )
    dist_timeout: float = _option(
        60.0, "Seconds after which a rank that does not answer ends a tensor-parallel engine."
    )
    num_continuous_decode_steps: int | None = _option(
        None,
        "Decode steps of a turn of the host, while nobody waits to start. Default: as many as keep a GPU busy; 1 on a CPU.",
        "--num-scheduler-steps",
    )
    is_embedding: bool = _option(
        False,
        "Serve embeddings of a model that generates otherwise: the last token's hidden state, of length 1.",
    )
    skip_tokenizer_init: bool = _option(
        False, "Take input_ids and give token_ids, no text; the model folder needs no tokenizer."
    )
    max_running_requests: int | None = _option(
        None, "Requests decoded together at most. Default: 256, on a GPU 1024."
    )
    chunked_prefill_size: int | None = _option(
        None,
        "Prompt tokens computed in one step at most; 0 or less: a whole prompt. Default: 2048, on a GPU 8192.",
    )
    schedule_policy: str = _option("lpm", "Order of waiting requests: lpm, fcfs, dfs-weight or random.")
    schedule_conservativeness: float = _option(1.0, "Above 1: admit fewer requests, retract less often.")
    disable_radix_cache: bool = _option(False, "Do not keep and share prefixes.")
    disable_regex_jump_forward: bool = _option(
        False, "Draw every token of a constrained answer, also where only one text can follow."
    )
    constrained_guesses: int | None = _option(
        None,
        "Tokens of a constrained answer that are guessed at once where they are likely (what earlier answers went on with, the rest "
        "of a forced text); the model verifies them in one pass, so answers stay the same. Default: none, on a GPU 8.",
    )
    constrained_json_whitespace: str = _option(
        "compact", "White space in constrained JSON: compact (none) or spaced (as json.dumps writes it)."
    )
    constrained_json_objects: str = _option(
        "open",
        "What JSON objects hold whose schema declares properties and says nothing of others: open (what JSON Schema "
        "allows), closed (no others) or strict (no others and all of these, in their order; most tokens are forced).",
    )
    precompile: str | None = _option(
        None, "File of constraints (JSON lines, or a compiled program) to compile before the server is ready."
    )
    constraint_workers: int = _option(2, "Processes of a server that compile its callers' constraints.")
    constraint_compile_seconds: float = _option(10.0, "Time that one such compile may take.")
    constraint_compile_memory_mb: int = _option(2048, "Memory that one such compile may take.")
    debug_faults: bool = _option(False, "Let POST /debug/fault break things, for tests of what happens then.")
    stream_interval: int = _option(1, "Tokens between two events of a stream, after the first.")
    random_seed: int | None = _option(None, "Seed of requests that have none. Default: random.")
    threads: int | None = _option(None, "CPU threads of the model. Default: all cores.")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> EngineConfig:
        """From keyword arguments, also by the names of flags' aliases (`tp_size`) and of other engines' flags.

        Raises InvalidRequest that names an unknown one and its near miss.
        """
        options = own_options(options, cls)
        known = {f.name for f in dataclasses.fields(cls)}
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
                raise InvalidRequest(f"engine option {name!r} is not known{hint}", param=name)
        return cls(**options)

    def seats(self, device: str) -> int:
        """Requests that are decoded together at most."""
        return self.max_running_requests or (1024 if device.startswith("cuda") else 256)

    @property
    def overrides(self) -> dict[str, Any]:
        try:
            value = json.loads(self.json_model_override_args)
        except ValueError as error:
            raise ModelError(f"--json-model-override-args is not valid JSON: {error}") from None
        if not isinstance(value, dict):
            raise ModelError("--json-model-override-args must be a JSON object")
        return value

    @property
    def folder(self) -> str:
        return self.model_path if self.model_path is not None else str(embedded_model_path())

    @property
    def name(self) -> str:
        """What /v1/models calls the model."""
        if self.served_model_name:
            return self.served_model_name
        return "tiny" if self.model_path is None else Path(self.model_path).name


@dataclass(frozen=True)
class Limits:
    """What a server takes from one request, one connection and all of them together; more is refused."""

    max_request_bytes: int = _option(
        32 << 20, "Larger bodies, counted after decompression, are refused with 413."
    )
    max_header_bytes: int = _option(64 << 10, "Larger headers are refused with 431.")
    max_header_fields: int = _option(100, "More header fields are refused with 431.")
    header_timeout: float = _option(
        60.0,
        "Seconds in which a header must arrive; also how long a connection may be idle between requests.",
    )
    body_timeout: float = _option(120.0, "Seconds in which a body must arrive; later it is refused with 408.")
    max_connections: int = _option(4096, "More open connections are closed at once.")
    max_samples: int = _option(128, "Samples of one prompt (n, best_of).")
    max_sequences: int = _option(1024, "Prompts times samples of one request.")
    max_stop_strings: int = _option(64, "Stop strings, and stop token ids, of one request.")
    max_top_logprobs: int = _option(20, "Likeliest tokens told at each position.")
    max_grammar_bytes: int = _option(64 << 10, "Size of a regex or grammar.")
    max_schema_bytes: int = _option(1 << 20, "Size of a JSON schema or structural tag.")
    max_schema_depth: int = _option(100, "Nesting of a JSON schema or structural tag.")
    max_queued_requests: int = _option(
        4096, "Sequences that may wait for a seat; more are refused with 429 and Retry-After."
    )
    max_stream_backlog: int = _option(
        4096, "Events that may wait for a client that reads slowly; then its connection is closed."
    )


@dataclass(frozen=True)
class ServerConfig(Limits):
    """Options of the HTTP server."""

    host: str = _option("127.0.0.1", "Address to listen on.")
    port: int = _option(30000, "Port to listen on; 0 takes a free one.")
    chat_template: str | None = _option(
        None,
        "Of the chat APIs: a .jinja or .json file, or the name of a conversation. Default: the model's.",
    )
    tool_call_parser: str | None = _option(
        None,
        "How the model writes tool calls: hermes, llama3_json, mistral, deepseek, pythonic or qwen3_coder. "
        "Default: as its chat template says.",
    )
    max_stored_responses: int = _option(
        1000, "Answers of /v1/responses that can be gone on from; older ones are forgotten. At most 64 MiB."
    )
    replay_requests: int = _option(
        200, "Requests that are kept in memory for `runtime replay`; 0 keeps none. At most 32 MiB."
    )
    reasoning_parser: str | None = _option(
        None,
        "Family whose tags separate reasoning from the answer, such as qwen3 or deepseek-r1. Default: none.",
    )
    api_key: list[str] | None = _option(  # noqa: RUF009
        None, "Clients must send one of these as a bearer token or x-api-key. May be given several times."
    )
    api_key_file: str | None = _option(None, "File of such keys, one on each line.")
    admin_api_key: str | None = _option(
        None, "What changes the server itself (flush, profile, faults) takes this key alone."
    )
    cors_allow_origin: list[str] | None = _option(  # noqa: RUF009
        None, "Web pages of this origin may call the server; * for all. May be given several times."
    )
    log_level: str = _option("info", "debug, info, warning or error.")
    log_level_http: str | None = _option(None, "Of the line for each request. Default: that of --log-level.")
    log_requests: bool = _option(
        False,
        "Log what requests and answers say, the first 2048 characters of each; else nothing of it is logged.",
    )
    log_format: str = _option("text", "text, or json: one object a line.")
    otlp_traces_endpoint: str | None = _option(
        None, "OpenTelemetry collector (OTLP over HTTP) that gets a span of each request; needs sglc[otel]."
    )
    profile_dir: str | None = _option(None, "Folder for the traces of /stop_profile.")
    state_dir: str | None = _option(
        None,
        "Folder of files and batches, which outlive the server there. Default: a temporary one.",
        "--file-storage-pth",
    )
    max_file_bytes: int = _option(512 << 20, "Larger uploads are refused with 413.")
    max_state_bytes: int = _option(
        16 << 30, "Bytes of all files together; then uploads are refused with 507."
    )
    batch_concurrency: int = _option(32, "Lines of batches that are answered at a time.")
    shutdown_timeout: float | None = _option(
        None,
        "Seconds that running requests have to finish after a first SIGTERM or SIGINT. Default: no limit.",
    )
    no_restart: bool = _option(
        False, "Exit with an error when the engine process is lost; do not start another."
    )
    hang_timeout: float = _option(
        50.0, "Seconds after which an engine process that does not answer is killed. 0: never."
    )

    SECRETS: ClassVar[tuple[str, ...]] = ("api_key", "admin_api_key")
