"""`runtime bench`: its commands, their options, and the tables that they print. Nothing heavy is imported before one runs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.bench.workload import Workload
from runtime.config import EngineConfig
from runtime.errors import InvalidRequest
from runtime.flags import fields_of, with_options

if TYPE_CHECKING:
    from runtime.bench.serving import Serving

app = typer.Typer(
    help="Measure a model: one batch, many requests at once, or a server.", no_args_is_help=True
)

Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        "--result-filename",
        "--output-file",
        help="File of the results; one that ends in .jsonl gets a line for each, at its end.",
    ),
]
Profile = Annotated[
    Path | None, typer.Option(help="File of a Chrome trace of the run, for Perfetto or chrome://tracing.")
]
RunName = Annotated[str, typer.Option(help="What the results call this run.")]


def numbers(option: str, text: str) -> list[int]:
    """`1,8,32`. Raises InvalidRequest with the option."""
    parts = text.replace(",", " ").split()
    if not parts or not all(p.isdecimal() and int(p) >= 1 for p in parts):
        raise InvalidRequest(f"{option} {text!r}: give numbers of at least 1, such as 1,8,32")
    return [int(p) for p in parts]


@app.command()
@with_options(EngineConfig)
def latency(
    batch_size: Annotated[
        str, typer.Option(help="Requests together; several numbers are measured in turn.")
    ] = "1",
    input_len: Annotated[str, typer.Option(help="Tokens of each prompt.")] = "1024",
    output_len: Annotated[str, typer.Option(help="Tokens of each answer.")] = "16",
    repeats: Annotated[int, typer.Option(min=1, help="Of each measurement; the median counts.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 1,
    correctness_test: Annotated[
        bool,
        typer.Option(help="Measure nothing; show that a prompt in the cache gives what a computed one does."),
    ] = False,
    cut_len: Annotated[int, typer.Option(min=1, help="Tokens in the cache, in the correctness test.")] = 4,
    run_name: RunName = "",
    out: Json = None,
    profile: Profile = None,
    **options: Any,
) -> None:
    """One batch at a time, without a server: prompts, then each token."""
    from tqdm import tqdm

    if correctness_test:
        _correctness(fields_of(EngineConfig, options), cut_len)
        return
    from runtime.bench import latency as bench
    from runtime.bench.report import figure, plain, save

    wanted = bench.cases(
        numbers("--batch-size", batch_size),
        numbers("--input-len", input_len),
        numbers("--output-len", output_len),
    )
    driver = _driver(fields_of(EngineConfig, options), out, profile)
    for batch, given, new in wanted:
        driver.check(batch, given + new)
    bench.measure(
        driver, wanted[0][0], wanted[0][1], min(wanted[0][2], 4), 1, seed - 1
    )  # what is made on first use
    found = []
    with _profiled(driver, profile):
        for batch, given, new in tqdm(wanted, disable=None, desc="latency"):
            found.append(bench.measure(driver, batch, given, new, repeats, seed))
    _table(
        "Latency, " + _model(driver.facts),
        ("batch", "input", "output", "prefill ms", "tok/s", "step ms", "tok/s", "total ms", "tok/s"),
        [
            (
                *(str(v) for v in (r.batch_size, r.input_len, r.output_len)),
                figure(r.prefill_latency * 1e3),
                figure(r.prefill_throughput),
                figure(r.median_decode_latency and r.median_decode_latency * 1e3),
                figure(r.median_decode_throughput),
                figure(r.total_latency * 1e3),
                figure(r.total_throughput),
            )
            for r in found
        ],
    )
    save(out, "latency", {"run_name": run_name, **driver.facts}, [plain(r) for r in found])


@app.command()
@with_options(Workload, EngineConfig)
def offline(
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the answers.")] = 0.0,
    run_name: RunName = "",
    out: Json = None,
    profile: Profile = None,
    **options: Any,
) -> None:
    """Many requests at once, without a server: tokens a second."""
    from tqdm import tqdm

    from runtime.bench import offline as bench
    from runtime.bench.report import figure, plain, save

    workload = fields_of(Workload, options)
    workload.check()
    driver = _driver(fields_of(EngineConfig, options), out, profile)
    asked = workload.requests(driver.vocabulary)
    driver.run(workload.requests(driver.vocabulary, salt=1)[:4])  # what is made on first use
    driver.flush()
    bar = tqdm(total=len(asked), disable=None, desc="offline", unit="request")
    with bar, _profiled(driver, profile):
        result = bench.measure(driver, asked, temperature, bar.update)
    rows = [
        ("requests", str(result.requests)),
        ("seconds", figure(result.duration)),
        ("requests/s", figure(result.request_throughput)),
        ("input tokens/s", figure(result.input_throughput)),
        ("output tokens/s", figure(result.output_throughput)),
        ("tokens/s", figure(result.total_throughput)),
        ("prompt tokens from the cache", f"{result.reused_share:.1%}"),
    ]
    _table("Offline, " + _model(driver.facts), ("", ""), rows)
    save(out, "offline", {"run_name": run_name, **driver.facts}, [plain(result)])


@app.command()
@with_options(Workload, EngineConfig)
def serving(
    base_url: Annotated[
        str | None,
        typer.Option(
            help="A running server, ours or any with OpenAI's API. Default: one of our own is started."
        ),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            help="openai (completions), openai-chat or native (/generate); other benchmarks' names of these are known."
        ),
    ] = "openai",
    request_rate: Annotated[
        str, typer.Option(help="Requests a second, or inf; several are measured in turn.")
    ] = "inf",
    request_rate_range: Annotated[
        str,
        typer.Option(
            help="First, end and step of several rates, such as 2,34,2; in place of --request-rate."
        ),
    ] = "",
    multi: Annotated[bool, typer.Option(hidden=True)] = False,
    host: Annotated[str, typer.Option(help="With --port, in place of --base-url.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Of a running server.")] = None,
    burstiness: Annotated[
        float, typer.Option(min=0.01, help="1: arrivals are a Poisson process; less: bursts; more: regular.")
    ] = 1.0,
    max_concurrency: Annotated[int | None, typer.Option(min=1, help="Requests under way at most.")] = None,
    goodput: Annotated[
        str, typer.Option(help="Milliseconds that a good answer keeps: ttft:200,tpot:50,e2e:2000.")
    ] = "",
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the answers.")] = 0.0,
    ignore_eos: Annotated[
        bool,
        typer.Option(
            "--ignore-eos/--no-ignore-eos",
            " /--disable-ignore-eos",
            help="Let answers go on to their full length; servers that do not know it need --no-.",
        ),
    ] = True,
    disable_stream: Annotated[
        bool, typer.Option(help="Ask for whole answers; the first token then comes with the last.")
    ] = False,
    vocabulary: Annotated[
        int | None,
        typer.Option(help="Prompts are ids below this. Default: our server's; words where it is not known."),
    ] = None,
    extra_request_body: Annotated[str, typer.Option(help="JSON object merged into each request.")] = "{}",
    bench_api_key: Annotated[
        str | None, typer.Option("--api-key", help="Sent as a bearer token.", envvar="OPENAI_API_KEY")
    ] = None,
    warmups: Annotated[int, typer.Option(min=0, help="Requests before the first measurement.")] = 2,
    flush_cache: Annotated[
        bool, typer.Option(help="Let the server forget prefixes before each rate.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="Seconds of silence after which a request has failed.")
    ] = 600.0,
    run_name: RunName = "",
    out: Json = None,
    profile: Profile = None,
    **options: Any,
) -> None:
    """A server under load: times to the first token, between tokens and to the end, by rate of arrivals."""
    import uvloop

    from runtime.bench.client import APIS, Client
    from runtime.bench.load import Load, run
    from runtime.bench.report import plain, save, writable
    from runtime.bench.serving import objectives_of, rates_in, rates_of, trace_of

    if backend not in APIS:
        raise InvalidRequest(f"--backend {backend!r} is not known; use {', '.join(APIS)}")
    try:
        extra = json.loads(extra_request_body)
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise InvalidRequest(f"--extra-request-body {extra_request_body!r} is not a JSON object")
    load = Load(
        workload=fields_of(Workload, options),
        rates=rates_in(request_rate_range) if request_rate_range else rates_of(request_rate),
        objectives=objectives_of(goodput),
        burstiness=burstiness,
        most=max_concurrency,
        warmups=warmups,
        flush=flush_cache,
        vocabulary=vocabulary,
    )
    load.workload.check()
    writable("--json", out)
    writable("--profile", profile)
    if port is not None and base_url is not None:
        raise InvalidRequest("--port and --base-url both name a server; leave one out")
    if multi and not request_rate_range:
        raise InvalidRequest("--multi measures several rates; name them with --request-rate-range 2,34,2")
    if port is not None:
        base_url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    with _server(base_url, fields_of(EngineConfig, options)) as url:
        client = Client(url, APIS[backend], bench_api_key, extra, timeout)
        client.model = options["served_model_name"] or ""
        client.full, client.temperature, client.stream = ignore_eos, temperature, not disable_stream
        facts, found = uvloop.run(run(client, load))
    _served([result for result, _ in found], facts)
    save(out, "serving", {"run_name": run_name, "backend": backend, **facts}, [plain(r) for r, _ in found])
    if profile is not None:
        trace_of([served for _, served in found]).save(profile)
    if not any(result.completed for result, _ in found):
        raise typer.Exit(1)


@app.command("server-latency")
@with_options(EngineConfig)
def server_latency(
    base_url: Annotated[
        str | None,
        typer.Option(
            help="A running server, ours or any with OpenAI's API. Default: one of our own is started."
        ),
    ] = None,
    backend: Annotated[str, typer.Option(help="As of serving.")] = "openai",
    batch_size: Annotated[
        str, typer.Option(help="Requests sent together; several numbers are measured in turn.")
    ] = "1",
    input_len: Annotated[str, typer.Option(help="Tokens of each prompt.")] = "1024",
    output_len: Annotated[str, typer.Option(help="Tokens of each answer.")] = "16",
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 1,
    skip_warmup: Annotated[bool, typer.Option(help="Measure the first batch too.")] = False,
    bench_api_key: Annotated[
        str | None, typer.Option("--api-key", help="Sent as a bearer token.", envvar="OPENAI_API_KEY")
    ] = None,
    run_name: RunName = "",
    out: Json = None,
    **options: Any,
) -> None:
    """One batch at a time, against a server: the time to the first tokens, then the tokens after them."""
    import uvloop

    from runtime.bench.client import APIS, Client
    from runtime.bench.latency import cases
    from runtime.bench.report import figure, plain, save, writable
    from runtime.bench.server_latency import run

    if backend not in APIS:
        raise InvalidRequest(f"--backend {backend!r} is not known; use {', '.join(APIS)}")
    wanted = cases(
        numbers("--batch-size", batch_size),
        numbers("--input-len", input_len),
        numbers("--output-len", output_len),
    )
    writable("--json", out)
    with _server(base_url, fields_of(EngineConfig, options)) as url:
        client = Client(url, APIS[backend], bench_api_key)
        client.model = options["served_model_name"] or ""
        facts, found = uvloop.run(run(client, wanted, seed, warmup=not skip_warmup))
    _table(
        f"Latency of {facts['model'] or facts['url']}",
        ("batch", "input", "output", "prefill ms", "tok/s", "decode tok/s", "total ms", "tok/s"),
        [
            (
                *(str(v) for v in (r.batch_size, r.input_len, r.output_len)),
                figure(r.prefill_latency * 1e3),
                figure(r.prefill_throughput),
                figure(r.decode_throughput),
                figure(r.total_latency * 1e3),
                figure(r.total_throughput),
            )
            for r in found
        ],
    )
    save(
        out,
        "server-latency",
        {"run_name": run_name, "backend": backend, **facts},
        [plain(r) for r in found],
    )


@contextmanager
def _server(url: str | None, config: EngineConfig) -> Iterator[str]:
    """The URL of a running server, or one with this configuration for as long as the context lasts."""
    changed = {
        f.name: value
        for f in dataclasses.fields(config)
        if (value := getattr(config, f.name)) != f.default and f.name != "served_model_name"
    }
    if url is not None:
        if changed:
            flag = "--" + next(iter(changed)).replace("_", "-")
            raise InvalidRequest(
                f"{flag} is an option of a server, but --base-url names one that runs; leave one out"
            )
        yield url
        return
    from runtime.server.launch import ServerProcess

    server = ServerProcess(**changed, served_model_name=config.served_model_name)
    try:
        yield server.url
    finally:
        server.shutdown()


def _served(found: Sequence[Serving], facts: dict[str, Any]) -> None:
    from runtime.bench.report import Spread, figure

    def spread(of: Spread | None) -> str:
        return f"{figure(of.median)} / {figure(of.p99)}" if of else "-"

    rows: list[tuple[str, Callable[[Serving], str]]] = [
        ("answered / failed", lambda r: f"{r.completed} / {r.failed}"),
        ("requests/s", lambda r: figure(r.request_throughput)),
        ("input tokens/s", lambda r: figure(r.input_throughput)),
        ("output tokens/s", lambda r: figure(r.output_throughput)),
        ("at once, at most", lambda r: figure(r.most_at_once)),
        ("to the first token (TTFT)", lambda r: spread(r.ttft_ms)),
        ("a token after it (TPOT)", lambda r: spread(r.tpot_ms)),
        ("between two events (ITL)", lambda r: spread(r.itl_ms)),
        ("to the end (E2E)", lambda r: spread(r.e2e_ms)),
        ("sent late", lambda r: spread(r.late_ms)),
    ]
    if found and found[0].goodput is not None:
        rows.append(("good requests/s", lambda r: figure(r.goodput)))
    rates = ["inf" if r.request_rate is None else f"{r.request_rate:g}" for r in found]
    _table(
        f"Serving, {facts['model'] or facts['url']}; times in ms, median / p99",
        ["requests a second", *rates],
        [[name, *(cell(r) for r in found)] for name, cell in rows],
    )
    for r in found:
        if r.failed:
            print(f"{r.failed} requests failed, for example: {r.errors[0]}", file=sys.stderr)


def _correctness(config: EngineConfig, cut: int) -> None:
    from runtime.bench.correctness import compare

    found = compare(config, cut)
    for one in found:
        print(f"{one.prompt!r}\n  -> {one.text!r}")
        print(
            f"  {one.cached} of {one.tokens} tokens from the cache; largest difference of a log-probability: {one.difference:.2e}"
        )
    if not all(one.same for one in found):
        print("the answers differ with a part of the prompt in the cache", file=sys.stderr)
        raise typer.Exit(1)


def _driver(config: EngineConfig, out: Path | None, profile: Path | None) -> Any:
    from runtime.bench.report import writable
    from runtime.engine.bytecode import kept_bytecode
    from runtime.engine.read_ahead import bytecode_folder, read_ahead
    from runtime.log import configure

    writable("--json", out)
    writable("--profile", profile)
    configure("warning", "text")
    read_ahead(config.device)
    with kept_bytecode(bytecode_folder(config.device)):
        from runtime.bench.driver import Driver

        return Driver(config)


@contextmanager
def _profiled(driver: Any, file: Path | None) -> Iterator[None]:
    if file is None:
        yield
        return
    from runtime.bench.report import figure
    from runtime.bench.steps import StepTrace

    with StepTrace(driver.loop) as steps:
        yield
    steps.trace.save(file)
    rows = [
        (
            share["kind"],
            *(figure(share[k]) if k in share else "-" for k in ("turns", "steps", "rows", "prompt_tokens")),
            figure(share["s"]),
        )
        for share in steps.shares()
    ]
    _table(
        "Where the device's time went", ("turns", "number", "steps", "rows each", "prompt tokens", "s"), rows
    )
    if steps.waits:
        print(f"queueing a batch made the host wait for the device {steps.waits} times", file=sys.stderr)


def _model(facts: dict[str, Any]) -> str:
    return f"{facts['architecture']}, {facts['card'] or facts['device']}, {facts['dtype']}"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", show_header=any(columns), box=box.SIMPLE_HEAD, pad_edge=False
    )
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
