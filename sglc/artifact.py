"""A compiled program as one file: plan, IR and what they were made for. It runs without the source that it came from.

The file is JSON. Its build id is a digest of all else in it, so equal inputs give equal files, and a file that was changed
is refused. A plan holds the text of one chat template and was checked for one tokenizer: a model with others is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from runtime.errors import InvalidRequest
from runtime.plan import ImagePart, Plan
from runtime.plan_verify import verify
from sglc.errors import PlanError
from sglc.exec.compiled import run_schedule, run_schedules
from sglc.exec.schedule import Schedule
from sglc.exec.session import Session
from sglc.ir.core import Module
from sglc.ir.lacks import of_image
from sglc.ir.ops import Break
from sglc.ir.printer import print_module
from sglc.lang.chat_template import chat_template_for
from sglc.lang.program import _with_sampling, resolve_backend
from sglc.lang.state import ProgramState
from sglc.plan.lower import lower

FORMAT = "sglc-artifact-1"
MAX_BYTES = 256 << 20


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """A program for one kind of arguments: `constants` are those that it was compiled for, the others are strings.

    ir         the optimised IR, for people
    defaults   of arguments that a run leaves out
    template   name of the chat template, and `template_digest` of its texts
    tokenizer  digest of tokenizer.json, empty if it was compiled for any
    build      digest of all this
    """

    format: str
    name: str
    plan: Plan
    ir: str
    defaults: dict[str, str]
    constants: dict[str, str]
    template: str
    template_digest: str
    tokenizer: str = ""
    build: str = ""

    @classmethod
    def of(
        cls,
        module: Module,
        template: Any,
        tokenizer: Path | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Raises PlanError for a program that needs its source: one that breaks off, or calls host functions."""
        end = module.graph.nodes[-1]
        if isinstance(end, Break):
            place = f"{end.at}: " if end.at else ""
            raise PlanError(
                f"{place}{module.main} runs interpreted from here on ({end.reason}), so it runs from its source, with "
                "sglc run FILE.py"
            )
        hosts = sorted({n.function for g in module.graphs.values() for n in g.walk() if n.op == "host"})  # type: ignore[attr-defined]
        if hosts:
            raise PlanError(
                f"{module.main} calls {', '.join(hosts)}: a program with host functions runs from its source, with sglc run FILE.py"
            )
        plan = _without_folders(lower(module, template))
        made = cls(
            format=FORMAT,
            name=module.main,
            plan=plan,
            ir=print_module(module),
            defaults={n: v for n, v in (defaults or {}).items() if n in plan.params and type(v) is str},
            constants=dict(module.graph.constants),
            template=template.name,
            template_digest=_digest_of(template),
            tokenizer=_tokenizer_digest(tokenizer) if tokenizer is not None else "",
        )
        return msgspec.structs.replace(made, build=made._digest())

    def _digest(self) -> str:
        content = msgspec.json.encode(msgspec.structs.replace(self, build=""), order="sorted")
        return hashlib.sha256(content).hexdigest()[:24]

    def save(self, path: str | Path) -> None:
        Path(path).write_bytes(msgspec.json.encode(self, order="sorted") + b"\n")

    # -- running ------------------------------------------------------------------------------------------------

    def bind(self, given: Mapping[str, Any]) -> dict[str, str]:
        """The arguments of a run. Raises TypeError as a call of the function would."""
        values = {**self.defaults, **given}
        for name, value in given.items():
            if name in self.constants:
                if repr(value) != self.constants[name] and str(value) != self.constants[name].strip("'\""):
                    raise TypeError(
                        f"{self.name} was compiled for {name}={self.constants[name]}, not {value!r}; compile it for that with -D {name}={value}"
                    )
                values.pop(name)
            elif name not in self.plan.params:
                known = ", ".join(self.plan.params) or "no arguments"
                raise TypeError(f"{self.name} got an unexpected argument {name!r}; it takes {known}")
            elif type(value) is not str:
                raise TypeError(
                    f"{self.name}: {name} is a {type(value).__name__}, but the plan was made for a str; pass str(...) of it"
                )
        missing = [n for n in self.plan.params if n not in values]
        if missing:
            raise TypeError(f"{self.name}: missing a required argument: {missing[0]!r}")
        return values

    def _check(self, backend: Any) -> Any:
        """The chat template of the backend's model. Raises InvalidRequest if the plan is not for that model."""
        template = chat_template_for(backend.model)
        if _digest_of(template) != self.template_digest:
            raise InvalidRequest(
                f"{self.name} was compiled for the chat template {self.template}, but {backend.model.model_path} has "
                f"{template.name}; compile it with --template {template.name}",
                param="artifact",
            )
        folder = Path(backend.model.model_path)
        if (
            self.tokenizer
            and (folder / "tokenizer.json").is_file()
            and _tokenizer_digest(folder) != self.tokenizer
        ):
            raise InvalidRequest(
                f"{self.name} was compiled for another tokenizer than that of {folder}; compile it with --tokenizer {folder}",
                param="artifact",
            )
        lack = next(of_image(backend.capabilities), None)
        shown = (p for prefix in self.plan.prefixes for p in prefix.parts if isinstance(p, ImagePart))
        if lack is not None and next(shown, None) is not None:
            raise InvalidRequest(f"{self.name} shows images, but {lack}", param="backend")
        return template

    @_with_sampling
    def run(
        self,
        *,
        sampling: Any,
        stream: bool = False,
        backend: Any = None,
        raise_on_error: bool = False,
        **kwargs: Any,
    ) -> ProgramState:
        """Like `Program.run`, with arguments by name."""
        arguments = self.bind(kwargs)
        chosen = resolve_backend(backend)
        session = Session(chosen, self._check(chosen), sampling, stream)
        return run_schedule(Schedule.of(self.plan), session, arguments, raise_on_error)

    @_with_sampling
    def run_batch(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        sampling: Any,
        backend: Any = None,
        progress_bar: bool = False,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Like `Program.run_batch`, for rows that are dicts."""
        bound = [self.bind(row) for row in rows]
        if not bound:
            return []
        chosen = resolve_backend(backend)
        session = Session(chosen, self._check(chosen), sampling)
        schedule = Schedule.of(self.plan)
        return run_schedules(
            [schedule] * len(bound),
            session,
            bound,
            progress_bar=progress_bar,
            return_exceptions=return_exceptions,
        )


def load_artifact(path: str | Path) -> Artifact:
    """Read and check an artefact; nothing of it is run. Raises InvalidRequest for a file that is none, or was changed."""
    file = Path(path)
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise InvalidRequest(
                f"{file} has {size:,} bytes; an artefact has at most {MAX_BYTES:,}; is it the right file?",
                param="artifact",
            )
        made = msgspec.json.decode(file.read_bytes(), type=Artifact)
    except OSError as error:
        raise InvalidRequest(f"{file}: {error.strerror}", param="artifact") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(
            f"{file} is not an artefact: {error}; make one with sglc compile --emit artifact",
            param="artifact",
        ) from None
    if made.format != FORMAT:
        raise InvalidRequest(
            f"{file} has format {made.format!r}, and this version reads {FORMAT!r}; compile it again",
            param="artifact",
        )
    if made._digest() != made.build:
        raise InvalidRequest(
            f"{file} was changed since it was compiled (build {made.build}); compile it again",
            param="artifact",
        )
    verify(made.plan)
    return made


def _without_folders(plan: Plan) -> Plan:
    """The plan with places named by file and line alone: it must not matter where the source lay."""
    steps: list[Any] = []
    for step in plan.steps:
        at = getattr(step, "at", "")
        steps.append(msgspec.structs.replace(step, at=Path(at).name) if at else step)
    return msgspec.structs.replace(plan, steps=tuple(steps))


def _digest_of(template: Any) -> str:
    return hashlib.sha256(repr(template).encode()).hexdigest()[:24]


def _tokenizer_digest(folder: Path) -> str:
    try:
        return hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()[:24]
    except OSError as error:
        raise PlanError(f"{folder}: there is no tokenizer.json ({error.strerror})") from None
