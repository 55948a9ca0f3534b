"""Text while it is written: pieces add up, characters are whole, stop strings never show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from runtime.api import Finish, SamplingParams, TextSegment, TokenSegment, answer_segments, render
from runtime.config import embedded_model_path
from runtime.tokenizer.detokenizer import Piece, TextStream
from runtime.tokenizer.tokenizer import Tokenizer

BYTES = Tokenizer(embedded_model_path())


@pytest.fixture(scope="module")
def pieces_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Like sentencepiece: words with a marked blank, bytes for what is not in the vocabulary."""
    folder = tmp_path_factory.mktemp("pieces")
    words = ["<unk>", "</s>", "▁the", "▁cat", "s", "at", "▁", "e", "é", "日"]
    vocabulary = {w: i for i, w in enumerate(words)} | {f"<0x{b:02X}>": len(words) + b for b in range(256)}
    hf = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    hf.pre_tokenizer = pre_tokenizers.Metaspace()
    hf.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    hf.add_special_tokens(["</s>"])
    hf.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return Tokenizer(folder)


def stream(tokenizer: Tokenizer, ids: list[int], sampling: SamplingParams, cuts: list[int]) -> list[Piece]:
    """Push ids in chunks; the last chunk ends by length."""
    text = TextStream(tokenizer, sampling)
    edges = sorted({min(c, len(ids) - 1) for c in cuts if c > 0} | {0})
    out = []
    for a, b in zip(edges, [*edges[1:], len(ids)], strict=True):
        finish = Finish(type="length", length=len(ids)) if b == len(ids) else None
        out.append(text.push(ids[a:b], finish))
        if text.finish is not None:
            break
    assert text.text == "".join(p.text for p in out)
    return out


def expected(tokenizer: Tokenizer, ids: list[int], stops: tuple[str, ...], skip: bool = True) -> str:
    """The text up to the stop string that is complete first; of several, the one that begins first."""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count], skip_special_tokens=skip)
        if found := [text.find(s) for s in stops if s in text]:
            return text[: min(found)]
    return tokenizer.decode(ids, skip_special_tokens=skip)


ids_lists = st.lists(
    st.integers(0, 400)
    | st.sampled_from(sorted(BYTES.special_ids))
    | st.sampled_from(BYTES.encode("日本é ü😀 the end", first=False)),
    min_size=2,
    max_size=30,
)


@settings(max_examples=300, deadline=None)
@given(
    ids=ids_lists,
    stops=st.lists(st.text("the ndab.\n日", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 29), max_size=10),
    skip=st.booleans(),
)
def test_pieces_add_up_to_the_text_before_the_first_stop(
    ids: list[int], stops: list[str], cuts: list[int], skip: bool
) -> None:
    ids = [*ids, BYTES.encode("#", first=False)[0]]  # so that no stop is completed by the last token
    found = stream(BYTES, ids, SamplingParams(stop=tuple(stops), skip_special_tokens=skip), cuts)
    text = "".join(p.text for p in found)
    assert text == expected(BYTES, ids, tuple(stops), skip)
    assert found[-1].finish is not None
    kept = tuple(i for p in found for i in p.ids)
    assert kept == tuple(ids[: len(kept)])
    assert BYTES.decode(kept, skip_special_tokens=skip) == text[: found[-1].ids_text]
    segments = answer_segments(text, kept, found[-1].ids_text)
    assert render(segments) == text
    assert render(segments) == text
    assert all(isinstance(s, TextSegment | TokenSegment) for s in segments)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("the cat sé日ü😀 ", min_size=1, max_size=20), cuts=st.lists(st.integers(0, 60), max_size=8)
)
def test_byte_fallback_tokenizers(pieces_tokenizer: Tokenizer, text: str, cuts: list[int]) -> None:
    ids = pieces_tokenizer.encode(text)
    found = stream(pieces_tokenizer, ids, SamplingParams(), cuts)
    assert "".join(p.text for p in found) == pieces_tokenizer.decode(ids)
    assert all("\ufffd" not in p.text for p in found)


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(["</s>", "▁the", "▁cat", "s", "at", "▁", "é"]) | st.sampled_from("ü😀ß語"),
        min_size=1,
        max_size=15,
    ),
    stops=st.lists(st.text("the cas ü語", min_size=1, max_size=4), max_size=2),
    cuts=st.lists(st.integers(0, 60), max_size=8),
    skip=st.booleans(),
)
def test_any_ids_of_byte_fallback_tokenizers(
    pieces_tokenizer: Tokenizer, parts: list[str], stops: list[str], cuts: list[int], skip: bool
) -> None:
    ids: list[int] = []
    for part in [*parts, "e"]:
        id = pieces_tokenizer.token_id(part)
        names = [part] if id is not None else [f"<0x{b:02X}>" for b in part.encode()]
        ids += [i for name in names if (i := pieces_tokenizer.token_id(name)) is not None]
    sampling = SamplingParams(stop=tuple(stops), skip_special_tokens=skip)
    if any("e" in s for s in stops):
        ids += pieces_tokenizer.encode("at", first=False)  # so that no stop is completed by the last token
    found = stream(pieces_tokenizer, ids, sampling, cuts)
    text = "".join(p.text for p in found)
    if found[-1].finish == Finish(type="length", length=len(ids)):
        assert text == pieces_tokenizer.decode(ids, skip_special_tokens=skip)
    else:
        assert text == expected(pieces_tokenizer, ids, tuple(stops), skip)
    kept = tuple(i for p in found for i in p.ids)
    assert kept == tuple(ids[: len(kept)])
    assert pieces_tokenizer.decode(kept, skip_special_tokens=skip) == text[: found[-1].ids_text]
    assert all("\ufffd" not in p.text for p in found)


def test_a_hidden_token_takes_no_blank_with_it(pieces_tokenizer: Tokenizer) -> None:
    the, end, cat = (pieces_tokenizer.token_id(t) or 0 for t in ("▁the", "</s>", "▁cat"))
    text = TextStream(pieces_tokenizer, SamplingParams())
    for id in (the, end, end, cat):
        text.push([id])
    assert text.text == "the cat" == pieces_tokenizer.decode([the, end, end, cat])


def test_never_half_a_character() -> None:
    ids = BYTES.encode("naïve 日本語 😀!", first=False)
    text = TextStream(BYTES, SamplingParams())
    for i, id in enumerate(ids):
        finish = Finish(type="length", length=len(ids)) if i == len(ids) - 1 else None
        assert "�" not in text.push([id], finish).text
    assert text.text == "naïve 日本語 😀!"


def test_what_may_become_a_stop_string_is_held_back() -> None:
    ids = BYTES.encode("one END? two END! three", first=False)
    text = TextStream(BYTES, SamplingParams(stop=("END!",)))
    seen = ""
    for id in ids:
        piece = text.push([id])
        seen += piece.text
        assert not seen.endswith(("E", "EN", "END"))
        if text.finish:
            break
    assert seen == "one END? two " and text.finish == Finish(type="stop", matched="END!")
    assert text.tokens < len(ids)


def test_length_is_decided_before_stop_strings() -> None:
    ids = BYTES.encode("a END", first=False)
    text = TextStream(BYTES, SamplingParams(stop=("END",)))
    text.push(ids, Finish(type="length", length=len(ids)))
    assert text.text == "a END" and text.finish is not None and text.finish.type == "length"


def test_no_stop_trim_and_special_tokens() -> None:
    ids = BYTES.encode("a END b", first=False)
    text = TextStream(BYTES, SamplingParams(stop=("END",), no_stop_trim=True))
    text.push(ids)
    assert text.text == "a END"
    end = BYTES.token_id("<|im_end|>")
    assert end is not None
    for skip, shown in ((True, "ab"), (False, "a<|im_end|>b")):
        text = TextStream(BYTES, SamplingParams(skip_special_tokens=skip))
        ids = [*BYTES.encode("a", first=False), end, *BYTES.encode("b", first=False)]
        text.push(ids, Finish(type="length", length=3))
        assert text.text == shown
    text = TextStream(BYTES, SamplingParams())
    piece = text.push([*BYTES.encode("a", first=False), end], Finish(type="stop", matched=end))
    assert (piece.text, len(piece.ids), text.tokens) == ("a", 1, 2)


def test_prompts_of_text_and_ids(tmp_path: Path) -> None:
    first = BYTES.encode("one two", first=False)
    prompt = (TextSegment("a"), TextSegment(" b"), TokenSegment(tuple(first), "one two"), TextSegment("c"))
    assert BYTES.encode_prompt(prompt) == [*BYTES.encode("a b"), *first, *BYTES.encode("c")]
    assert BYTES.ends == (BYTES.token_id("<|im_end|>"), BYTES.token_id("<|endoftext|>"))
    hf = tokenizers.Tokenizer(models.BPE({"<s>": 0, "a": 1, "b": 2}, []))
    hf.add_special_tokens(["<s>"])
    hf.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    hf.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    bos = Tokenizer(tmp_path)
    assert bos.encode_prompt((TextSegment("a"), TokenSegment((2,), "b"), TextSegment("a"))) == [0, 1, 2, 1]
    assert bos.encode("<s>a") == [0, 1]
    assert bos.encode_prompt((TokenSegment((2,), "b"), TextSegment("a"))) == [2, 1]
