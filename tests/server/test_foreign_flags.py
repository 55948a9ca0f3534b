"""Flags of other servers: taken where nothing would change, else refused with a reason, never ignored."""

from __future__ import annotations

import subprocess
import sys

import pytest

from runtime.config import EngineConfig, ServerConfig
from runtime.errors import InvalidRequest
from runtime.flags import flags_of
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
