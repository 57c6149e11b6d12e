"""A workload as a TOML file: what is asked, how long, when, and what requests share. Checked once, here.

Lengths come from one of three: `[input]` and `[output]` give distributions; `[lengths]` names a trace whose rows are drawn again,
prompt and output together; `[trace]` replays a recorded trace, with its lengths, prefixes and times as they are after its filters. Paths
start from the file's folder. Everything else adds to it. Unknown keys are errors: a misspelt setting must not
silently measure something else.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_type_hints

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError, create_model, model_validator

from trtllm_workloads import arrivals as processes
from trtllm_workloads import lengths as distributions
from trtllm_workloads import typed
from trtllm_workloads.errors import WorkloadError
from trtllm_workloads.request import Workload
from trtllm_workloads.structure import Conversations, Pick, PrefixTree, with_adapters, with_priorities, with_slo
from trtllm_workloads.synthetic import generator, synthetic
from trtllm_workloads.tokens import Vocabulary
from trtllm_workloads.traces import Trace, filters, read_trace

Count = Annotated[int, Strict(), Field(ge=1, le=2**31 - 1)]
Whole = Annotated[int, Strict(), Field(ge=-(2**31), lt=2**31)]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False, ge=-1e12, le=1e12)]
Positive = Annotated[float, Strict(), Field(gt=0, le=1e12, allow_inf_nan=False)]
MOST_REQUESTS = 100_000_000
LARGEST_BYTES = 1 << 20
"""A workload file names settings; one beyond this is something else."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _wrong_settings(what: str, cls: type, given: dict[str, Any]) -> WorkloadError:
    names = ", ".join(field.name for field in dataclasses.fields(cls))
    return WorkloadError(f"{what} take {names or 'nothing more'}; given: {', '.join(given) or 'nothing'}")


def _from_short_form(parse: Callable[[str], Any], kinds: Mapping[str, type]) -> BeforeValidator:
    """Reads a table that is written as its flag is, such as `poisson:5` or 128."""

    def read(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, str | int):
            return value
        made = parse(str(value))
        return {"kind": next(name for name, cls in kinds.items() if cls is type(made)), **dataclasses.asdict(made)}

    return BeforeValidator(read)


_OF_FIELDS = {int: Whole, float: Number, tuple[int, ...]: tuple[Whole, ...], tuple[float, ...]: tuple[Number, ...]}
"""How a field of a distribution or an arrival process is checked in a file, by its type."""


NESTED, EMPIRICAL = "components", "empirical"


def _settings(name: str, kinds: Mapping[str, type], more: Sequence[str] = ()) -> type[_Table]:
    """A table with the field `kind`, one of `kinds` or `more`, and every field of their classes but `NESTED`."""
    types = {field: kind for cls in kinds.values() for field, kind in get_type_hints(cls).items() if field != NESTED}
    fields: dict[str, Any] = {"kind": (Literal[(*kinds, *more)], ...)}
    fields |= {field: (_OF_FIELDS[kind] | None, None) for field, kind in types.items()}
    return create_model(name, __base__=_Table, **fields)


_LENGTHS = {**distributions.KINDS, **distributions.OF_FILES}
_LengthSettings: Any = _settings("_LengthSettings", _LENGTHS, (EMPIRICAL,))
_ArrivalSettings: Any = _settings("_ArrivalSettings", processes.KINDS)


class LengthTable(_LengthSettings):  # type: ignore[misc]
    """One of the kinds of `lengths`, with others as the `components` of a mixture, or `empirical`: a column of a trace."""

    trace: Path | None = None
    column: Literal["input", "output"] | None = None
    components: tuple[LengthTable, ...] | None = None

    def build(self, folder: Path) -> distributions.Lengths:
        given = {name: value for name, value in self.model_dump(exclude={"kind", "components"}).items() if value is not None}
        if self.components is not None:
            given["components"] = tuple(component.build(folder) for component in self.components)
        if self.kind == EMPIRICAL:
            if set(given) != {"trace", "column"}:
                raise WorkloadError(f"empirical lengths take trace, column; given: {', '.join(given) or 'nothing'}")
            rows = read_trace(folder / given["trace"])
            return distributions.Empirical(rows.input_tokens if self.column == "input" else rows.output_tokens)
        cls = _LENGTHS[self.kind]
        try:
            return cls(**given)  # type: ignore[no-any-return]
        except TypeError:
            raise _wrong_settings(f"{self.kind} lengths", cls, given) from None


Length = Annotated[LengthTable, _from_short_form(distributions.parse, distributions.KINDS)]


class ArrivalTable(_ArrivalSettings):  # type: ignore[misc]
    """One of the processes of `arrivals`."""

    def build(self) -> processes.Arrivals:
        given = {name: value for name, value in self.model_dump(exclude={"kind"}).items() if value is not None}
        cls = processes.KINDS[self.kind]
        try:
            return cls(**given)  # type: ignore[no-any-return]
        except TypeError:
            raise _wrong_settings(f"{self.kind} arrivals", cls, given) from None


class PrefixTable(_Table):
    levels: Annotated[tuple[tuple[Count, Count], ...], Field(min_length=1, max_length=16)]
    pick: Pick = "uniform"
    alpha: Annotated[float, Strict(), Field(ge=0, le=100, allow_inf_nan=False)] = 1.0


class ConversationTable(_Table):
    turns: Length
    think_mean_s: Annotated[float, Strict(), Field(ge=0, le=1e9, allow_inf_nan=False)] = 0.0
    system_tokens: Annotated[int, Strict(), Field(ge=0, le=distributions.MAX_TOKENS)] = 0
    max_tokens: Annotated[int, Strict(), Field(ge=0, le=2**31 - 1)] = 0


class LoraTable(_Table):
    count: Count
    pick: Pick = "uniform"
    alpha: Annotated[float, Strict(), Field(ge=0, le=100, allow_inf_nan=False)] = 1.0
    share: Annotated[float, Strict(), Field(ge=0, le=1)] = 1.0


class SloTable(_Table):
    ttft_ms: Positive | None = None
    tpot_ms: Positive | None = None
    e2e_ms: Positive | None = None


class TraceTable(_Table):
    path: Path
    format: str | None = None
    skip_bad_rows: bool = False
    window_s: tuple[Number, float] | None = None
    max_input: Count | None = None
    max_output: Count | None = None
    max_total: Count | None = None
    sample: Annotated[float, Strict(), Field(gt=0, le=1)] = 1.0
    jitter: bool = False
    length_scale: Positive = 1.0
    time_scale: Positive = 1.0


class WorkloadSpec(_Table):
    """The file's top level. `requests` may be left out for a trace (then all its rows)."""

    name: str
    requests: Annotated[int, Strict(), Field(ge=1, le=MOST_REQUESTS)] | None = None
    seed: Annotated[int, Strict(), Field(ge=0, lt=2**63)] = 0
    vocab_size: Annotated[int, Strict(), Field(ge=2, le=2**31 - 1)] = 32_000
    correlation: Annotated[float, Strict(), Field(ge=-1, le=1)] = 0.0
    input: Length | None = None
    output: Length | None = None
    lengths: TraceTable | None = None
    trace: TraceTable | None = None
    arrivals: Annotated[ArrivalTable, _from_short_form(processes.parse, processes.KINDS)] | None = None
    prefixes: PrefixTable | None = None
    conversations: ConversationTable | None = None
    lora: LoraTable | None = None
    priorities: Annotated[tuple[Number, ...], Field(min_length=1)] | None = None
    slo: SloTable | None = None

    @model_validator(mode="after")
    def _one_source_of_lengths(self) -> Self:
        if (self.trace is not None) + (self.lengths is not None) + (self.input is not None or self.output is not None) != 1:
            raise ValueError("give either [trace], or [lengths], or [input] and [output]")
        if (self.input is None) != (self.output is None):
            raise ValueError("[input] and [output] go together; one is missing")
        if self.correlation and self.input is None:
            raise ValueError("correlation goes with [input] and [output]; a trace brings its own")
        if self.trace is None and self.requests is None:
            raise ValueError("requests is missing: how many requests to make")
        if self.trace is not None and (self.prefixes or self.conversations):
            raise ValueError("prefixes and conversations are the trace's own; leave them out beside [trace]")
        return self

    def build(
        self,
        folder: Path,
        *,
        requests: int | None = None,
        vocab_size: int | None = None,
        seed: int | None = None,
        skip_bad_rows: bool = False,
    ) -> Workload:
        """The workload; the keywords replace the file's values. `folder` is what a trace's relative path starts from."""
        if skip_bad_rows:
            return self._skipping_bad_rows().build(folder, requests=requests, vocab_size=vocab_size, seed=seed)
        number, seed = requests or self.requests, self.seed if seed is None else seed
        vocabulary = Vocabulary(vocab_size or self.vocab_size)
        if self.trace is not None:
            workload = dataclasses.replace(self._from_trace(self.trace, folder, number, vocabulary, seed), name=self.name)
        else:
            workload = self._synthetic(folder, number, vocabulary, seed)
        if self.lora is not None:
            workload = with_adapters(workload, self.lora.count, self.lora.pick, generator(seed, "lora"), self.lora.alpha, self.lora.share)
        if self.priorities is not None:
            workload = with_priorities(workload, self.priorities, generator(seed, "priorities"))
        if self.slo is not None:
            workload = with_slo(workload, self.slo.ttft_ms, self.slo.tpot_ms, self.slo.e2e_ms)
        return workload

    def _skipping_bad_rows(self) -> WorkloadSpec:
        changes = {
            name: table.model_copy(update={"skip_bad_rows": True}) for name in ("lengths", "trace") if (table := getattr(self, name))
        }
        return self.model_copy(update=changes)

    def _pairs(self, folder: Path, seed: int) -> distributions.Pairs:
        if self.lengths is not None:
            trace = _filtered(self.lengths, folder, seed)
            return distributions.FromPairs(trace.input_tokens, trace.output_tokens)
        assert self.input is not None
        assert self.output is not None
        return distributions.Correlated(self.input.build(folder), self.output.build(folder), self.correlation)

    def _synthetic(self, folder: Path, number: int | None, vocabulary: Vocabulary, seed: int) -> Workload:
        assert number is not None
        talk, tree = self.conversations, self.prefixes
        return synthetic(
            number,
            self._pairs(folder, seed),
            name=self.name,
            arrivals=self.arrivals.build() if self.arrivals else None,
            prefixes=PrefixTree(tree.levels, tree.pick, tree.alpha) if tree else None,
            conversations=Conversations(talk.turns.build(folder), talk.think_mean_s, talk.system_tokens, talk.max_tokens) if talk else None,
            vocabulary=vocabulary,
            seed=seed,
        )

    def _from_trace(self, table: TraceTable, folder: Path, number: int | None, vocabulary: Vocabulary, seed: int) -> Workload:
        trace = _filtered(table, folder, seed)
        if number is not None:
            trace = trace.in_order().take(np.arange(min(number, len(trace))))
        workload = trace.to_workload(vocabulary, seed)
        if self.arrivals is not None:
            times = self.arrivals.build().times(len(workload), generator(seed, "arrivals"))
            return workload.with_arrivals(times)
        return workload


def _filtered(table: TraceTable, folder: Path, seed: int) -> Trace:
    """The trace a table names, after its filters, in the order of the table's fields."""
    trace = read_trace(folder / table.path, format=table.format, skip_bad_rows=table.skip_bad_rows)
    if table.jitter:
        trace = filters.jitter(trace, generator(seed, "jitter"))
    if table.window_s is not None:
        trace = filters.window(trace, *table.window_s)
    if table.length_scale != 1:
        trace = filters.length_scale(trace, table.length_scale)
    trace = filters.shorter_than(trace, table.max_input, table.max_output, table.max_total)
    if table.sample < 1:
        trace = filters.sample(trace, table.sample, generator(seed, "sample"))
    if table.time_scale != 1:
        trace = filters.time_scale(trace, table.time_scale)
    return trace


def read_spec(path: Path) -> WorkloadSpec:
    """The specification in a TOML file. Raises `WorkloadError` naming file and field."""
    try:
        if not path.is_file():
            raise WorkloadError(f"cannot read workload {path}: it is not a file")
        if path.stat().st_size > LARGEST_BYTES:
            raise WorkloadError(f"{path} has {path.stat().st_size:,} bytes; a workload file has less than {LARGEST_BYTES:,}")
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        return WorkloadSpec.model_validate({"name": path.stem, **content})
    except OSError as error:
        raise WorkloadError(f"cannot read workload {path}: {error.strerror or error}") from None
    except ValidationError as error:
        raise WorkloadError(f"{path}: {_sentence(error)}") from None
    except RecursionError:
        raise WorkloadError(f"{path} is not a workload: its tables are nested too deeply") from None
    except WorkloadError:
        raise
    except ValueError as error:
        raise WorkloadError(f"{path} is not valid TOML: {error}") from None


def _sentence(error: ValidationError) -> str:
    problem = typed.first(error)
    if problem["type"] == "extra_forbidden":
        known = list(_table_at(problem["loc"][:-1]).model_fields)
        near = get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known there are {', '.join(known)}"
        return f"{typed.location(problem)} is not a setting of a workload; {hint}"
    return typed.sentence(error)


def _table_at(place: Sequence[str | int]) -> type[_Table]:
    """The table at a place such as `input.components.0`."""
    table: type[_Table] = WorkloadSpec
    for name in place:
        if isinstance(name, str):
            parts = [table.model_fields[name].annotation]
            while not (isinstance(parts[0], type) and issubclass(parts[0], _Table)):
                parts = [*get_args(parts[0]), *parts[1:]] if get_args(parts[0]) else parts[1:]
            table = parts[0]
    return table
