"""Flags of other servers: taken where nothing would change, else refused with a reason, never ignored."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest
import typer
from typer.testing import CliRunner

from runtime.cli import app
from runtime.config import EngineConfig, ServerConfig
from runtime.errors import InvalidRequest
from runtime.flags import flags_of, whole_names
from runtime.foreign_flags import FOREIGN, own_flags

KNOWN = {f for c in (EngineConfig, ServerConfig) for f in flags_of(c)}
# The flags of the server that this one takes the place of.
SEED = """--model-path --tokenizer-path --host --port --tokenizer-mode --skip-tokenizer-init --load-format --trust-remote-code
--dtype --kv-cache-dtype --quantization --context-length --device --served-model-name --chat-template --is-embedding
--mem-fraction-static --max-running-requests --max-total-tokens --chunked-prefill-size --max-prefill-tokens --schedule-policy
--schedule-conservativeness --tensor-parallel-size --tp-size --tp --stream-interval --random-seed
--constrained-json-whitespace-pattern --log-level --log-level-http --log-requests --show-time-cost --api-key --file-storage-pth
--enable-cache-report --data-parallel-size --dp-size --dp --load-balance-method --dist-init-addr --nccl-init-addr --nccl-init
--nnodes --node-rank --json-model-override-args --enable-double-sparsity --ds-channel-config-path --ds-heavy-channel-num
--ds-heavy-token-num --ds-heavy-channel-type --ds-sparse-decode-threshold --lora-paths --max-loras-per-batch
--attention-backend --sampling-backend --disable-flashinfer --disable-flashinfer-sampling --disable-radix-cache
--disable-regex-jump-forward --disable-cuda-graph --disable-cuda-graph-padding --disable-disk-cache
--disable-custom-all-reduce --disable-mla --disable-penalizer --disable-nan-detection --enable-overlap-schedule
--enable-overlap-scheduler --enable-mixed-chunk --enable-torch-compile --max-torch-compile-bs --torchao-config
--enable-p2p-check --triton-attention-reduce-in-fp32 --num-continuous-decode-steps""".split()


def test_every_flag_of_the_field_is_ours_or_has_an_answer() -> None:
    assert [f for f in SEED if f not in KNOWN and f not in FOREIGN] == []


def test_what_is_so_anyway_is_taken() -> None:
    given = [
        "serve",
        "--nnodes",
        "1",
        "--enable-mixed-chunk",
        "--dp=1",
        "--port",
        "1",
        "--tokenizer-mode",
        "auto",
    ]
    known = KNOWN - set(FOREIGN)
    assert own_flags(given, known) == ["serve", "--port", "1"]


@pytest.mark.parametrize(
    "given",
    [["--dp", "2"], ["--lora-paths", "a=b"], ["--trust-remote-code"], ["--disable-nan-detection"], ["--dp"]],
)
def test_what_cannot_be_had_is_refused_with_a_reason(given: list[str]) -> None:
    reason = FOREIGN[given[0]].reason
    with pytest.raises(InvalidRequest) as caught:
        own_flags(["serve", *given], KNOWN)
    assert str(caught.value) == f"{' '.join(given)} cannot be had here: {reason}" and reason


def test_the_command_line_says_so_in_one_line() -> None:
    command = [sys.executable, "-m", "runtime.cli", "serve", "--trust-remote-code"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "runtime: --trust-remote-code cannot be had here: code from model folders is never run; leave it out"
    )


def test_names_cut_short_are_written_out_where_one_is_meant() -> None:
    command = typer.main.get_command(app)

    def whole(text: str) -> str:
        return " ".join(whole_names(text.split(), command))

    assert whole("serve --mem 0.5 --tp 2 --max-run=3") == (
        "serve --mem-fraction-static 0.5 --tp 2 --max-running-requests=3"
    )
    assert whole("serve --max 3 --no-such") == "serve --max 3 --no-such"  # several begin so, or none
    assert whole("bench latency --batch 32 --correct") == "bench latency --batch-size 32 --correctness-test"
    assert whole("bench serving --num-prompt 5") == "bench serving --num-prompts 5"
    assert whole("nonsense --mem 1") == "nonsense --mem 1"


def test_options_by_the_names_of_flags() -> None:
    config = EngineConfig.of({"tp_size": 2, "model": "/m", "dp_size": 1, "enable_mixed_chunk": True})
    assert config.tensor_parallel_size == 2 and config.model_path == "/m"
    assert EngineConfig.of({"dp_size": None, "trust_remote_code": False}) == EngineConfig()
    with pytest.raises(InvalidRequest, match="--dp-size 2 cannot be had here"):
        EngineConfig.of({"dp_size": 2})
    with pytest.raises(InvalidRequest, match="--trust-remote-code cannot be had here"):
        EngineConfig.of({"trust_remote_code": True})
    with pytest.raises(InvalidRequest, match="did you mean 'page_size'"):
        EngineConfig.of({"page_sise": 1})


def test_the_machine_is_checked() -> None:
    found = CliRunner().invoke(app, ["check", "--json", "--no-run"])
    facts = json.loads(found.stdout)
    assert found.exit_code == 0 and facts["problems"] == [] and facts["sglc"] == version("sglc")
    assert "cores" in facts["cpu"] and "GiB" in facts["memory"]
    found = CliRunner().invoke(app, ["check"])
    assert found.exit_code == 0 and found.stdout.endswith("everything works\n")
