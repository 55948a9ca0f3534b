"""Train the embedded model: `python -m stdlib.tiny.train`.

The rate follows the clock: it is constant, then falls over the last part of `--minutes`, so the budget is
kept on any machine. A checkpoint is written every few minutes and `--resume` goes on from it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from stdlib.tiny import path
from stdlib.tiny.corpus import documents
from stdlib.tiny.corpus.document import CLOSE, END
from stdlib.tiny.network import CPU_SHAPE, GPU_SHAPE, Network, export
from stdlib.tiny.optimizer import Muon
from stdlib.tiny.tokenizer import save as save_tokenizer
from stdlib.tiny.tokenizer import train as train_tokenizer

PADDING = 1024
DECAY = 0.35  # share of the time over which the rate falls to nothing


def id_of(tokenizer: Tokenizer, token: str) -> int:
    id = tokenizer.token_to_id(token)
    if id is None:
        raise SystemExit(f"the tokenizer has no {token}; remove its folder to train a new one")
    return id


def rows(tokenizer: Tokenizer, seed: int, length: int) -> Iterator[tuple[list[int], list[bool]]]:
    """Documents packed into rows of length + 1 tokens; the flags say which tokens are learnt."""
    end = id_of(tokenizer, END)
    ids: list[int] = []
    learn: list[bool] = []
    source = documents(seed)
    while True:
        batch = [next(source) for _ in range(64)]
        parts = [part for document in batch for part in document]
        encoded = iter(tokenizer.encode_batch([part.text for part in parts]))
        for document in batch:
            for part in document:
                tokens = next(encoded).ids
                ids += tokens
                learn += [part.learn] * len(tokens)
            ids.append(end)
            learn.append(True)
        while len(ids) > length:
            yield ids[: length + 1], learn[: length + 1]
            ids, learn = ids[length:], learn[length:]


class Rows(IterableDataset[tuple[Tensor, Tensor]]):
    """`rows` for a DataLoader: each worker makes its own text."""

    def __init__(self, tokenizer: Tokenizer, seed: int, length: int) -> None:
        self.tokenizer = tokenizer.to_str()
        self.seed = seed
        self.length = length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        info = get_worker_info()
        seed = self.seed + 1_000_003 * (info.id if info else 0)
        for ids, learn in rows(Tokenizer.from_str(self.tokenizer), seed, self.length):
            yield torch.tensor(ids), torch.tensor(learn)


def batches(
    tokenizer: Tokenizer, seed: int, length: int, tokens: int, device: str, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, flags) [tokens / length, length + 1]."""
    loader = DataLoader(
        Rows(tokenizer, seed, length), batch_size=max(1, tokens // length), num_workers=workers
    )
    for ids, learn in loader:
        yield ids.to(device), learn.to(device)


def loss_of(network: Network, ids: Tensor, learn: Tensor) -> Tensor:
    """Mean cross-entropy of the tokens to be learnt; only these meet the vocabulary.

    Their number is padded to a multiple, since every new shape costs a CPU the compilation of new kernels.
    """
    hidden = network(ids[:, :-1]).flatten(0, 1)
    wanted = learn[:, 1:].flatten().nonzero()[:, 0]
    padding = -len(wanted) % PADDING
    targets = F.pad(ids[:, 1:].flatten()[wanted], (0, padding), value=-100)
    return F.cross_entropy(network.logits(hidden[F.pad(wanted, (0, padding))]).float(), targets)


def main(
    minutes: Annotated[float, typer.Option(help="How long to train.")] = 15.0,
    device: Annotated[str, typer.Option(help="cpu or cuda; auto takes what is there.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder of the weights [the package's own].")] = None,
    seed: Annotated[int, typer.Option(help="Of the text and the first weights.")] = 1,
    tokens: Annotated[int, typer.Option(help="Tokens of a step.")] = 0,
    length: Annotated[
        int, typer.Option(help="Tokens of a row; every fifth step has rows of four times as many.")
    ] = 256,
    checkpoint: Annotated[Path | None, typer.Option(help="File for the state of the training.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint.")] = False,
    workers: Annotated[
        int, typer.Option(help="Processes that make text; 0 makes it in the training's own.")
    ] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 takes all cores.")] = 0,
    autocast: Annotated[bool, typer.Option(help="Compute in bfloat16.")] = True,
) -> None:
    """Train the embedded model on its own corpus and write weights, tokenizer and configuration."""
    if threads:
        torch.set_num_threads(threads)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    shape = GPU_SHAPE if device == "cuda" else CPU_SHAPE
    tokens = tokens or (65_536 if device == "cuda" else 8_192)
    folder = out or path()
    if (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer(seed)
        save_tokenizer(tokenizer, folder, shape.context)
    eos = (id_of(tokenizer, CLOSE), id_of(tokenizer, END))

    torch.manual_seed(seed)
    network = Network(shape).to(device)
    inner = [p for n, p in network.named_parameters() if p.dim() == 2 and "embed" not in n]
    rest = [p for n, p in network.named_parameters() if p.dim() != 2 or "embed" in n]
    muon, adam = Muon(inner), torch.optim.AdamW(rest, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0)
    bases = [(muon, 0.02), (adam, 4e-3)]
    step, spent = 0, 0.0
    if resume and checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        step, spent = state["step"], state["spent"]

    short = batches(tokenizer, seed + 1000 * step + 1, length, tokens, device, workers)
    long = batches(tokenizer, seed + 1000 * step + 2, 4 * length, tokens, device, workers)
    begun, saved, shown = time.monotonic() - spent, time.monotonic(), 0.0
    with tqdm(total=round(minutes * 60), unit="s", initial=round(spent)) as bar:
        while (elapsed := time.monotonic() - begun) < minutes * 60:
            progress = elapsed / (minutes * 60)
            rate = min(1.0, (step + 1) / 50, max((1 - progress) / DECAY, 0.02))
            for optimizer, base in bases:
                for group in optimizer.param_groups:
                    group["lr"] = base * rate
            ids, learn = next(long if step % 5 == 4 else short)
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                loss = loss_of(network, ids, learn)
            loss.backward()
            for optimizer, _ in bases:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            step += 1
            shown = loss.item() if shown == 0 else 0.95 * shown + 0.05 * loss.item()
            bar.n = min(round(elapsed), bar.total)
            bar.set_postfix(
                step=step, loss=f"{shown:.4f}", rate=f"{step * tokens / max(elapsed, 1):.0f} tokens/s"
            )
            if checkpoint and time.monotonic() - saved > 120:
                state = {
                    "network": network.state_dict(),
                    "muon": muon.state_dict(),
                    "adam": adam.state_dict(),
                }
                torch.save({**state, "step": step, "spent": time.monotonic() - begun}, checkpoint)
                export(network, folder, eos=eos)
                saved = time.monotonic()
    export(network, folder, eos=eos)
    parameters = sum(p.numel() for p in network.parameters())
    typer.echo(
        f"{parameters:,} parameters, {step} steps, {step * tokens:,} tokens, loss {shown:.4f}, written to {folder}"
    )


if __name__ == "__main__":
    typer.run(main)
