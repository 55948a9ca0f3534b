"""The device runner gives the tokens of the plain one: two batches in flight, graphs, padding, any mixture of requests."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import replace
from typing import Any

import pytest
import torch

from runtime.api import LogprobOptions, SamplingParams
from runtime.attention.plain import PlainAttention
from runtime.attention.triton import TritonAttention
from runtime.batch import Batch
from runtime.engine.device import DeviceRunner, device_runner
from runtime.engine.first_launches import launch_all
from runtime.engine.graphs import graph_sizes
from runtime.engine.runner import ModelRunner
from runtime.kernels.skinny import skinny_linear
from runtime.kernels.tuning import decode_tiles
from runtime.kv.store import KVStore
from runtime.models.decoder import Decoder
from runtime.models.fused import FusedDecoder, why_not
from runtime.models.heads import head_of
from runtime.models.spec import ArchSpec, AttnSpec, LayerSpec, MlaSpec, MlpSpec, MoeSpec, NormSpec, RopeSpec
from runtime.request import Request
from runtime.sampling.flashinfer import FlashInferSampler
from runtime.sampling.sampler import Sampler, by_torch, by_triton
from runtime.scheduler.scheduler import Scheduler
from tests.kernels.flashinfer_case import stand_in

ROPE = RopeSpec(16, tuple(0.5**i for i in range(8)))
NORM = NormSpec(1e-5)
LLAMA = LayerSpec(AttnSpec(4, 2, 16, 0.25, ROPE), MlpSpec(48), NORM)
LATENT = AttnSpec(
    4, 1, 24, 0.25, RopeSpec(8, ROPE.frequencies[:4], True), norm=NORM, mla=MlaSpec(None, 16, 12, 8, 10)
)
MODELS = {
    "llama": LLAMA,
    "qwen": replace(LLAMA, attention=replace(LLAMA.attention, qkv_bias=True, window=9)),
    "normed heads": replace(LLAMA, attention=replace(LLAMA.attention, qk_norm="head", norm=NORM)),
    "gemma": replace(LLAMA, norm=replace(NORM, offset=1.0), mlp=MlpSpec(48, "gelu_pytorch_tanh")),
    "not fused": replace(LLAMA, form="parallel"),
    "latents": replace(LLAMA, attention=LATENT),
    "experts": replace(LLAMA, mlp=MoeSpec(4, 2, 16, shared=8)),
}


def decoder(kind: str, device: torch.device) -> Decoder:
    layer = MODELS[kind]
    layers = (layer, layer) if kind == "llama" else (layer,)
    torch.manual_seed(3)
    made = Decoder(ArchSpec("tiny", 97, 32, 96, layers, layer.norm, tied=kind == "qwen"), torch.float32)
    for p in made.parameters():
        p.data = torch.ones_like(p) if p.dim() == 1 else torch.randn_like(p) * 0.4
    return made.to(device)


def requests() -> list[Request]:
    generator = torch.Generator().manual_seed(8)
    kinds: list[tuple[int, SamplingParams, Any]] = [
        (3, SamplingParams(temperature=0), None),
        (20, SamplingParams(temperature=0.9, top_k=9, seed=1), None),
        (11, SamplingParams(temperature=1.0), None),
        (1, SamplingParams(temperature=0, repetition_penalty=1.4), None),
        (17, SamplingParams(temperature=0), LogprobOptions(start=2, top=2)),
    ]
    return [
        Request(
            str(i),
            torch.randint(0, 97, (n,), generator=generator).tolist(),
            sampling,
            max_new=5,
            seed=i + 40,
            logprobs=logprobs,
        )
        for i, (n, sampling, logprobs) in enumerate(kinds)
    ]


def generate(
    model: Decoder,
    page_size: int,
    runner: str,
    device: torch.device,
    depth: int = 1,
    turn: int = 1,
    sampler: Sampler | None = None,
) -> Any:
    """Tokens and log-probabilities of every request; they come one after another, one is aborted half way."""
    scheduler = Scheduler(
        pages=128 // page_size,
        page_size=page_size,
        context=96,
        chunk=16,
        depth=depth,
        max_running=4,
        turn=turn,
    )
    store = KVStore(model.spec, scheduler.cache.pool.total, page_size, torch.float32, str(device))
    made: ModelRunner
    chosen: dict[str, Any] = {} if sampler is None else {"sampler": sampler}
    if runner == "plain":
        made = ModelRunner(model, store, PlainAttention(store), **chosen)
    else:
        largest = {"graphs": 4, "runs": 20}.get(runner, 0)  # "runs": prompts can be rows of the graphs, too
        made = device_runner(
            model,
            store,
            TritonAttention(store),
            (),
            None,
            seats=4,
            context=96,
            largest_graph=largest,
            **chosen,
        )
    waiting, out = requests(), {str(i): ([], []) for i in range(5)}  # type: ignore[var-annotated]
    flight: deque[Any] = deque()
    while waiting or not scheduler.idle:
        if waiting:
            scheduler.add(waiting.pop(0))
        batch = scheduler.next_batch()
        if batch is not None:
            flight.append(made.launch(batch) if isinstance(made, DeviceRunner) else made.run(batch))
        if batch is None or len(flight) >= depth:
            landed = flight.popleft()
            landed = made.collect(landed) if isinstance(made, DeviceRunner) else landed
            for event in scheduler.commit(landed):
                tokens, scores = out[event.request.id]
                tokens += event.tokens
                scores += [(p.id, round(p.logprob, 3)) for p, _ in event.logprobs]
                scores += [(p.id, round(p.logprob, 3)) for p, _ in event.prompt_scores or ()]
                if event.request.id == "2" and len(tokens) == 3:
                    scheduler.abort("2")
        if flight and isinstance(made, DeviceRunner):
            made.draw(flight[-1])
        scheduler.check()
    out["2"] = (out["2"][0][:3], out["2"][1])
    return out


@pytest.mark.parametrize(
    ("kind", "page_size", "runner", "depth", "turn"),
    [
        ("llama", 1, "graphs", 2, 3),
        ("llama", 16, "graphs", 1, 8),
        ("llama", 16, "eager", 2, 2),
        ("qwen", 1, "graphs", 1, 1),
        ("normed heads", 16, "graphs", 2, 4),
        ("gemma", 1, "eager", 1, 1),
        ("not fused", 1, "graphs", 2, 2),
        ("latents", 16, "graphs", 2, 3),
        ("experts", 1, "graphs", 2, 2),
        ("llama", 1, "plain", 1, 3),
    ],
)
def test_tokens_are_those_of_the_plain_runner(
    kind: str, page_size: int, runner: str, depth: int, turn: int, device: torch.device
) -> None:
    model = decoder(kind, device)
    with torch.inference_mode():
        wanted = generate(model, page_size, "plain", device)
        assert generate(model, page_size, runner, device, depth, turn) == wanted


@pytest.mark.parametrize(
    ("runner", "name"),
    [("graphs", "torch"), ("graphs", "flashinfer"), ("plain", "flashinfer"), ("plain", "triton")],
)
def test_other_samplers_draw_the_same_tokens(
    runner: str, name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = stand_in()
    monkeypatch.setitem(sys.modules, "flashinfer", made)
    sampler = {"torch": by_torch, "triton": by_triton}.get(name) or FlashInferSampler(device)
    model = decoder("llama", device)
    with torch.inference_mode():
        wanted = generate(model, 16, "plain", device)
        assert generate(model, 16, runner, device, 2, 3, sampler) == wanted
    assert (len(made.sampling.shown) > 2) is (name == "flashinfer"), "beyond what it compiles with"


def test_known_tokens_are_rows_of_a_graph(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of up to 16 tokens, where keys are stored before a launch attends to them."""
    tiles = replace(decode_tiles(device, 1, 2, 16, torch.float32), packed=False)
    monkeypatch.setattr("runtime.attention.triton.decode_tiles", lambda *_: tiles)
    captured: list[Batch] = []
    launch = DeviceRunner._launch_graph

    def noted(self: DeviceRunner, batch: Batch, *rest: Any) -> Any:
        captured.append(batch)
        return launch(self, batch, *rest)

    monkeypatch.setattr(DeviceRunner, "_launch_graph", noted)
    model = decoder("qwen", device)
    with torch.inference_mode():
        assert generate(model, 4, "runs", device, 2, 2) == generate(model, 4, "plain", device)
    prompts = [s for batch in captured for s in batch.slices if s.tokens]
    assert {len(s.tokens) for s in prompts} > {1, 3} and not all(s.sample for s in prompts)
    assert not any(s.scores >= 0 for s in prompts)


def test_chunks_from_which_nobody_draws_compute_a_row(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt alone, longer than a chunk: the last layer, which leaves out rows, has one all the same."""
    model = decoder("llama", device)
    scheduler = Scheduler(pages=8, page_size=16, context=96, chunk=16, depth=1, max_running=4)
    store = KVStore(model.spec, scheduler.cache.pool.total, 16, torch.float32, str(device))
    rows: list[int] = []

    def watched(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        rows.append(len(x))
        return skinny_linear(x, *args, **options)

    monkeypatch.setattr("runtime.models.fused.skinny_linear", watched)
    with torch.inference_mode():
        runner = device_runner(
            model, store, TritonAttention(store), (), None, seats=4, context=96, largest_graph=0
        )
        rows.clear()  # a start on a GPU has launched all kernels once
        scheduler.add(Request("a", list(range(40)), SamplingParams(temperature=0), max_new=1, seed=0))
        while not scheduler.idle:
            batch = scheduler.next_batch()
            assert batch is not None
            scheduler.commit(runner.collect(runner.launch(batch)))
    assert min(rows) == 1 and max(rows) == 16


@pytest.mark.parametrize("packed", [False, True])
def test_no_row_sees_keys_that_its_own_launch_stores(
    packed: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = replace(decode_tiles(device, 1, 2, 16, torch.float32), packed=packed)
    monkeypatch.setattr("runtime.attention.triton.decode_tiles", lambda *_: tiles)
    model = decoder("gemma", device)
    store = KVStore(model.spec, 8, 1, torch.float32, str(device))
    with torch.inference_mode():
        runner = device_runner(
            model, store, TritonAttention(store), (), None, seats=2, context=8, largest_graph=2
        )
    assert runner.graphs is not None and runner.graphs.fits(2) and not runner.graphs.fits(3)
    assert runner.graphs.fits(2, runs=True)
    assert (runner.graphs.graph(2) is runner.graphs.graph(2, runs=True)) is not packed


@pytest.mark.parametrize(("kind", "page_size"), [("llama", 1), ("not fused", 16)])
def test_vectors_are_those_of_the_plain_runner(
    kind: str, page_size: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts in several chunks, one that is in the cache but for its last token, two that end in one batch."""
    model = decoder(kind, device)
    model.spec = replace(model.spec, task="embed")
    found: list[dict[str, list[float]]] = []
    for own in (False, True):
        scheduler = Scheduler(
            pages=128 // page_size, page_size=page_size, context=96, chunk=16, depth=1 + own, max_running=4
        )
        store = KVStore(model.spec, scheduler.cache.pool.total, page_size, torch.float32, str(device))
        head = head_of(model)
        made: ModelRunner = ModelRunner(model, store, PlainAttention(store), head=head)
        if own:
            made = device_runner(
                model, store, TritonAttention(store), (), None, head, seats=4, context=96, largest_graph=4
            )
            assert made.graphs is None  # type: ignore[attr-defined]
            monkeypatch.setattr("runtime.engine.first_launches._PROMPT", 9)  # the interpreter is slow
            launch_all(made)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(8)
        prompts = [torch.randint(0, 97, (n,), generator=generator).tolist() for n in (40, 3, 5, 1)]
        prompts += [prompts[0], prompts[0][:20] + prompts[1]]
        out: dict[str, list[float]] = {}
        for i, prompt in enumerate(prompts):
            scheduler.add(Request(str(i), prompt, SamplingParams(), max_new=0, pool=True))
        with torch.inference_mode():
            while not scheduler.idle:
                batch = scheduler.next_batch()
                assert batch is not None
                for event in scheduler.commit(made.run(batch)):
                    assert event.vector is not None and event.finish is not None
                    out[event.request.id] = torch.frombuffer(
                        bytearray(event.vector), dtype=torch.float32
                    ).tolist()
        scheduler.check()
        assert scheduler.cached_tokens >= 39 // page_size * page_size
        found.append(out)
    plain, device_ones = found
    assert set(plain) == set(device_ones) == {str(i) for i in range(6)}
    for i, vector in plain.items():
        assert device_ones[i] == pytest.approx(vector, abs=1e-4)
        assert sum(v * v for v in vector) == pytest.approx(1, abs=1e-4)
    assert plain["0"] != plain["1"] and plain["0"] == pytest.approx(plain["4"], abs=1e-4)


@pytest.mark.parametrize("path", ["rows", "flash"])
def test_prompts_attended_from_their_rows(
    path: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path == "flash" and device.type != "cpu":
        pytest.skip("torch's flash attention takes no float32 on a GPU")
    model = decoder("llama", device)
    with torch.inference_mode():
        wanted = generate(model, 1, "plain", device)
        monkeypatch.setattr("runtime.attention.triton.fresh_path", lambda *_: path)
        assert generate(model, 1, "graphs", device, 2) == wanted


@pytest.mark.parametrize("kind", ["llama", "latents", "not fused"])
def test_what_was_launched_before_the_first_request_changes_nothing(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    plain = device_runner

    def warm(*args: Any, **options: Any) -> DeviceRunner:
        made = plain(*args, **options)
        launch_all(made)
        return made

    model = decoder(kind, device)
    with torch.inference_mode():
        wanted = generate(model, 4, "plain", device)
        monkeypatch.setattr(f"{__name__}.device_runner", warm)
        monkeypatch.setattr("runtime.engine.first_launches._PROMPT", 9)  # the interpreter is slow
        assert generate(model, 4, "graphs", device, 2) == wanted


def test_what_cannot_be_fused_is_told() -> None:
    device = torch.device("cpu")
    assert why_not(decoder("llama", device)) is None
    assert why_not(decoder("not fused", device)) == "its layers have the form 'parallel'"
    assert why_not(decoder("latents", device)) == "its attention is over latents"
    assert why_not(decoder("experts", device)) == "its layers have experts"


def test_fused_layers_compute_what_the_plain_ones_do(device: torch.device) -> None:
    model = decoder("llama", device)
    store = KVStore(model.spec, 8, 16, torch.float32, str(device))
    fused = FusedDecoder(model, store)
    hidden = torch.randn(3, 32, device=device)
    assert torch.allclose(fused.logits(hidden), model.logits(hidden), atol=1e-4)


def test_sizes_of_graphs_rise_and_end_with_the_largest() -> None:
    assert graph_sizes(1) == (1,)
    assert graph_sizes(20) == (1, 2, 4, 8, 16, 20)
    assert list(graph_sizes(300)) == sorted(set(graph_sizes(300))) and graph_sizes(300)[-1] == 300


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_launching_waits_for_nothing(device: torch.device) -> None:
    """Greedy and sampled rows, prompts and decode steps: the host reads no value of the device until `collect`."""
    model = decoder("llama", device)
    scheduler = Scheduler(pages=128, page_size=1, context=96, chunk=16, depth=2, max_running=4)
    store = KVStore(model.spec, scheduler.cache.pool.total, 1, torch.float32, str(device))
    runner = device_runner(
        model, store, TritonAttention(store), (), None, seats=4, context=96, largest_graph=4
    )
    for request in requests()[:3]:
        scheduler.add(request)
    flight: deque[Any] = deque()
    for turn in range(12):
        batch = scheduler.next_batch()
        if batch is not None:
            torch.cuda.set_sync_debug_mode(
                "error" if turn > 3 else "default"
            )  # the first ones compile kernels
            try:
                flight.append(runner.launch(batch))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        if flight and (batch is None or len(flight) == 2):
            scheduler.commit(runner.collect(flight.popleft()))
