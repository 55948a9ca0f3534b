"""The door: a constraint as callers write it to what enforces it, or to an error that says why not.

A regular constraint becomes one table (`TokenFsm`); one that is recursive or too large becomes a machine
whose rows are made where they are visited (`TokenPushdown`). Both answer the same questions. Without a
vocabulary only what does not depend on tokens is compiled, which is what a compiler's checks need.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, Literal, get_args

import msgspec
import numpy as np

from grammar import regex_syntax
from grammar.automaton import TokenAutomaton
from grammar.choices import choices_fsm, dtype_regex
from grammar.constraint_errors import ConstraintError, TooLarge, Unsatisfiable
from grammar.ebnf.compiler import compile_grammar
from grammar.ebnf.syntax import Grammar, parse_grammar
from grammar.fsm import Fsm
from grammar.measure import Measure
from grammar.regex import blame, matching
from grammar.regex_tree import Pattern
from grammar.schema.compiler import Objects, SchemaOptions, compile_schema
from grammar.schema.document import Document
from grammar.schema.text import COMPACT, SPACED
from grammar.store import ConstraintStore, store_key
from grammar.structural_tag import StructuralTag, normalised, tagged_text
from grammar.term_arena import Limits
from grammar.terms import Terms
from grammar.token_fsm import TokenFsm
from grammar.token_pushdown import TokenPushdown
from grammar.vocabulary import Vocabulary

Kind = Literal["regex", "json_schema", "ebnf", "structural_tag", "choices", "dtype"]
Whitespace = Literal["compact", "spaced"]

TABLE_LIMITS = Limits(states=20_000, seconds=5.0)
"""Up to here a regular constraint becomes one table."""
SCHEMA_TABLE_LIMITS, _SCHEMA_STATES = Limits(states=4_000, seconds=1.0), 1_000
_SHOWN = 4096  # bytes of a witness that are looked at for its forced share
_AHEAD_STATES = 4_000  # of a machine, built before it is first asked; recursion has no end of them
_AHEAD_SECONDS = 0.2
MACHINE_LIMITS = Limits(states=1_000_000, seconds=10.0)


@dataclass(frozen=True, slots=True)
class Options:
    """
    whitespace              "compact": none; "spaced": one blank after commas and colons, as json.dumps
    any_order               properties in any order, not only as declared; forces less
    objects                 what is written of an object that declares properties and says nothing of others.
                            "open": what JSON Schema allows; "closed": no others, as if it said `additionalProperties: false`;
                            "strict": no others, and every declared one (which is refused where no value is left).
                            More is forced in turn, and valid values that are otherwise are lost
    tables                  small JSON schemas become tables: more time to compile, less for each token
    ignore_unknown_formats  take a `format` that is not known for an annotation instead of refusing it
    """

    whitespace: Whitespace = "compact"
    any_order: bool = False
    ignore_unknown_formats: bool = False
    objects: Objects = "open"
    tables: bool = False

    @property
    def of_schemas(self) -> SchemaOptions:
        separators = COMPACT if self.whitespace == "compact" else SPACED
        return SchemaOptions(separators, self.ignore_unknown_formats, self.any_order, self.objects)


DEFAULT_OPTIONS = Options()


class ConstraintReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a constraint. Token figures are None without a vocabulary.

    exact      every text that is accepted is allowed and no other, in the way of writing that `Options` says
    engine     "table" or "machine"
    classes    token classes of a table (byte classes without a vocabulary)
    witness    a shortest accepted text
    forced     what every accepted text begins with
    forced_share  part of the witness that has to follow what precedes it
    unreachable  of a JSON schema: pointers of the properties, alternatives and listed values that no accepted text has
    """

    kind: str
    digest: str
    exact: bool = True
    engine: str
    states: int
    classes: int | None
    bytes: int
    min_bytes: int
    max_bytes: int | None
    min_tokens: int | None
    max_tokens: int | None
    witness: str
    forced: str
    forced_share: float
    unreachable: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class CompiledConstraint:
    """`fsm` is there for a regular constraint; `automaton` if there was a vocabulary or no `fsm`."""

    kind: Kind
    source: str
    digest: str
    fsm: Fsm | None
    automaton: TokenAutomaton | None
    _bounds: tuple[int, int | None] = field(default=(0, None), repr=False)
    _unreachable: tuple[str, ...] = field(default=(), repr=False)

    def accepts(self, text: str) -> bool:
        """Is `text` one of the constraint's texts?"""
        if self.fsm is not None:
            return self.fsm.accepts(text)
        assert self.automaton is not None
        state = self.automaton.advance_bytes(0, text.encode())
        return state >= 0 and self.automaton.can_end(state)

    def begins(self, text: str) -> bool:
        """Does some accepted text begin with `text`?"""
        if self.fsm is not None:
            return self.fsm.run(text.encode()) >= 0
        assert self.automaton is not None
        return self.automaton.advance_bytes(0, text.encode()) >= 0

    def texts(self, limit: int = 1000) -> list[str] | None:
        """All accepted texts if they are at most `limit`; None if there are more, or they were not counted."""
        found = self.fsm.texts(limit) if self.fsm is not None else None
        return None if found is None else [t.decode() for t in found]

    @cached_property
    def witness(self) -> str:
        """A shortest accepted text."""
        if self.fsm is not None:
            return (self.fsm.witness() or b"").decode()
        assert isinstance(self.automaton, TokenPushdown)
        return self.automaton.closing_text(0).decode()

    def report(self) -> ConstraintReport:
        automaton, fsm = self.automaton, self.fsm
        shortest, longest = _lengths(fsm) if fsm is not None else self._bounds
        table = automaton if isinstance(automaton, TokenFsm) else None
        real = automaton is not None and automaton.vocabulary.digest != _byte_vocabulary().digest
        forced = (
            fsm.forced_text() if fsm is not None else automaton.forced(0) if automaton is not None else b""
        )
        states = automaton.states if automaton is not None else fsm.states if fsm is not None else 0
        size = automaton.nbytes if automaton is not None else fsm.table.nbytes if fsm is not None else 0
        return ConstraintReport(
            kind=self.kind,
            digest=self.digest,
            engine="machine" if isinstance(automaton, TokenPushdown) else "table",
            states=states,
            classes=table.classes if table is not None else fsm.classes if fsm is not None else None,
            bytes=size,
            min_bytes=shortest,
            max_bytes=longest,
            min_tokens=automaton.min_tokens if automaton is not None and real else None,
            max_tokens=automaton.max_tokens if automaton is not None and real else None,
            witness=self.witness,
            forced=forced.decode("utf-8", "ignore"),
            forced_share=self._forced_share(),
            unreachable=self._unreachable,
        )

    def _forced_share(self) -> float:
        text, fsm, automaton = self.witness.encode()[:_SHOWN], self.fsm, self.automaton
        at = state = forced = 0
        while at < len(text):
            if fsm is not None:
                run = fsm.forced_text(state)
            else:
                assert automaton is not None
                run = automaton.forced(state)
            run = run[: len(text) - at]
            taken = run or text[at : at + 1]
            if fsm is not None:
                state = fsm.run(taken, state)
            else:
                assert automaton is not None
                state = automaton.advance_bytes(state, taken)
            at += len(taken)
            forced += len(run)
        return forced / len(text) if text else 0.0


def compile_constraint(
    kind: Kind,
    source: str | Sequence[str] | dict[str, Any] | bool | type,
    vocabulary: Vocabulary | None = None,
    *,
    options: Options = DEFAULT_OPTIONS,
    store: ConstraintStore | None = None,
) -> CompiledConstraint:
    """Compile a constraint for a vocabulary.

    kind     source
    regex        a pattern (`grammar.regex_syntax` has the dialect); the whole text must match
    json_schema  JSON text, or its decoded value
    ebnf         a grammar in EBNF or Lark's syntax (`grammar.ebnf.syntax` has both)
    structural_tag  free text with constrained parts (`grammar.structural_tag` has the document)
    choices      the texts
    dtype        int, float, bool, str, or their names

    Raises ConstraintError (its tree is in `grammar.constraint_errors`) if it cannot be enforced exactly.
    """
    try:
        return _compile(kind, source, vocabulary, options, store)
    except RecursionError:
        raise TooLarge("the constraint is nested too deeply, or has a name that is too long") from None


def _compile(
    kind: Kind, source: Any, vocabulary: Vocabulary | None, options: Options, store: ConstraintStore | None
) -> CompiledConstraint:
    if kind == "json_schema":
        return _compile_schema(source, vocabulary, options, store)
    if kind == "structural_tag":
        return _compile_tag(source, vocabulary, options)
    if kind not in ("regex", "ebnf", "choices", "dtype"):
        known = ", ".join(get_args(Kind))
        raise ConstraintError(f"a constraint is of kind {known}, not {kind!r}")
    text = _text_of(kind, source)
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ConstraintError(f"the {kind} holds half of a surrogate pair, which no text does")
    digest = store_key("constraint", kind, text)
    key = store_key(digest, vocabulary.digest) if vocabulary is not None else digest
    if store is not None and vocabulary is not None:
        table = _from_store(store.load(key), vocabulary)
        if table is not None:
            return CompiledConstraint(kind, text, digest, table.fsm, table)
    if kind == "choices":
        fsm: Fsm | None = choices_fsm(json.loads(text))
    elif kind == "ebnf":
        fsm = _regular(parse_grammar(text))
        if fsm is None:
            return _compile_grammar(text, digest, vocabulary)
    else:
        pattern = regex_syntax.parse(text)
        terms = Terms(TABLE_LIMITS)
        try:
            fsm = Fsm.of_terms(terms, matching(terms, pattern))
        except TooLarge as error:
            if vocabulary is None:
                raise blame(pattern, error) from None
            return _compile_large(kind, text, digest, pattern, vocabulary)
    assert fsm is not None
    if vocabulary is None:
        _refuse_empty(fsm)
        return CompiledConstraint(kind, text, digest, fsm, None)
    try:
        table = TokenFsm.of(fsm, vocabulary)
    except TooLarge:
        if kind == "ebnf":
            return replace(_compile_grammar(text, digest, vocabulary), fsm=fsm)
        pattern = regex_syntax.parse(text)
        return replace(_compile_large(kind, text, digest, pattern, vocabulary), fsm=fsm)
    if store is not None:
        store.save(key, _arrays(table))
    return CompiledConstraint(kind, text, digest, fsm, table)


def _text_of(kind: str, source: Any) -> str:
    if kind == "choices":
        choices = json.loads(source) if isinstance(source, str) and source.startswith("[") else source
        choices_fsm(list(choices) if not isinstance(choices, str) else choices)
        return json.dumps(list(choices), ensure_ascii=False)
    if kind == "dtype":
        return dtype_regex(source)
    if not isinstance(source, str):
        name = "a grammar" if kind == "ebnf" else "a regular expression"
        raise ConstraintError(f"{name} is a string, not {type(source).__name__}")
    return source


def _refuse_empty(fsm: Fsm) -> None:
    if fsm.is_empty:
        raise Unsatisfiable("no text matches the constraint")


def _lengths(fsm: Fsm) -> tuple[int, int | None]:
    return (0 if fsm.is_empty else int(fsm.distance[0])), fsm.longest


def _compile_large(
    kind: Kind, text: str, digest: str, pattern: Pattern, vocabulary: Vocabulary
) -> CompiledConstraint:
    terms = Terms(MACHINE_LIMITS)
    start = matching(terms, pattern)
    measure = Measure(terms, 0)
    machine = TokenPushdown(terms, start, measure, vocabulary, MACHINE_LIMITS)
    bounds = (measure.shortest(start), measure.longest(start))
    return CompiledConstraint(kind, text, digest, None, machine, bounds)


def _regular(parsed: Grammar) -> Fsm | None:
    """The automaton of a grammar that needs no stack and few states."""
    terms = Terms(TABLE_LIMITS)
    compiled = compile_grammar(parsed, terms)
    if compiled.nested:
        return None
    try:
        return Fsm.of_terms(terms, compiled.start)
    except TooLarge:
        return None


def _compile_grammar(text: str, digest: str, vocabulary: Vocabulary | None) -> CompiledConstraint:
    terms = Terms(MACHINE_LIMITS)
    start = compile_grammar(parse_grammar(text), terms).start
    measure = Measure(terms, terms.rule_count)
    machine = TokenPushdown(terms, start, measure, vocabulary or _byte_vocabulary(), MACHINE_LIMITS)
    machine.explore(_AHEAD_STATES, _AHEAD_SECONDS)
    bounds = (measure.shortest(start), measure.longest(start))
    return CompiledConstraint("ebnf", text, digest, None, machine, bounds)


def _compile_schema(
    source: Any, vocabulary: Vocabulary | None, options: Options, store: ConstraintStore | None
) -> CompiledConstraint:
    document = Document.read(source) if isinstance(source, str) else Document(source)
    text = source if isinstance(source, str) else json.dumps(source, ensure_ascii=False)
    digest = store_key("constraint", "json_schema", json.dumps(document.root), repr(options))
    if options.tables and vocabulary is not None:
        table = _schema_table(document, digest, vocabulary, options, store)
        if table is not None:
            return CompiledConstraint("json_schema", text, digest, table.fsm, table)
    compiled = compile_schema(document, options.of_schemas, limits=MACHINE_LIMITS)
    machine = TokenPushdown(
        compiled.terms, compiled.start, compiled.measure, vocabulary or _byte_vocabulary(), MACHINE_LIMITS
    )
    machine.explore(_AHEAD_STATES, _AHEAD_SECONDS)
    bounds = (compiled.measure.shortest(compiled.start), compiled.measure.longest(compiled.start))
    return CompiledConstraint("json_schema", text, digest, None, machine, bounds, compiled.unreachable)


def _schema_table(
    document: Document, digest: str, vocabulary: Vocabulary, options: Options, store: ConstraintStore | None
) -> TokenFsm | None:
    """The table of a schema; None if it would be too large, as where a schema holds itself."""
    key = store_key(digest, vocabulary.digest)
    table = _from_store(store.load(key), vocabulary) if store is not None else None
    if table is not None:
        return table
    try:
        compiled = compile_schema(document, options.of_schemas, limits=SCHEMA_TABLE_LIMITS)
        fsm = Fsm.of_terms(compiled.terms, compiled.start)
        if fsm.states > _SCHEMA_STATES:
            return None
        table = TokenFsm.of(fsm, vocabulary)
    except TooLarge:
        return None
    if store is not None:
        store.save(key, _arrays(table))
    return table


def _compile_tag(source: Any, vocabulary: Vocabulary | None, options: Options) -> CompiledConstraint:
    tag = StructuralTag.read(source)
    text = normalised(tag)
    terms = Terms(MACHINE_LIMITS)
    start = tagged_text(tag, terms, options.of_schemas)
    measure = Measure(terms, terms.rule_count)
    machine = TokenPushdown(terms, start, measure, vocabulary or _byte_vocabulary(), MACHINE_LIMITS)
    machine.explore(_AHEAD_STATES, _AHEAD_SECONDS)
    digest = store_key("constraint", "structural_tag", text, repr(options))
    return CompiledConstraint("structural_tag", text, digest, None, machine, (0, None))


@cache
def _byte_vocabulary() -> Vocabulary:
    """One token for each byte: what is asked of a machine that has met no vocabulary."""
    return Vocabulary.of([bytes([b]) for b in range(256)] + [b""], eos=[256])


def _arrays(table: TokenFsm) -> dict[str, np.ndarray]:
    return {
        "fsm_table": table.fsm.table,
        "fsm_class_of": table.fsm.class_of,
        "fsm_accepting": table.fsm.accepting,
        "next": table.next,
        "class_of": table.class_of,
        "distance": table.distance,
        "longest": np.array([-1 if table.longest is None else table.longest], np.int64),
    }


def _from_store(arrays: dict[str, np.ndarray] | None, vocabulary: Vocabulary) -> TokenFsm | None:
    if arrays is None:
        return None
    fsm = Fsm(arrays["fsm_table"], arrays["fsm_class_of"], arrays["fsm_accepting"])
    longest = int(arrays["longest"][0])
    return TokenFsm(
        fsm,
        vocabulary,
        arrays["next"],
        arrays["class_of"],
        arrays["distance"],
        longest if longest >= 0 else None,
    )
