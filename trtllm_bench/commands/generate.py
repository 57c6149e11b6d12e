"""`generate`: prompts to text on the terminal, streamed as the tokens come."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from trtllm_bench.commands import _options as options
from trtllm_bench.errors import FAILURE, USAGE, BenchError

if TYPE_CHECKING:
    from trtllm_engines.llm import LLM, RequestOutput
    from trtllm_engines.runtime.sampling_params import SamplingParams


def command(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Text; - reads standard input.")] = None,
    model: options.Model = None,
    engine_dir: options.EngineDir = None,
    precision: options.Precision = None,
    kv_dtype: options.KvDtype = "auto",
    context_attention: options.ContextAttention = None,
    weights: options.Weights = None,
    token_ids: Annotated[
        str | None, typer.Option("--token-ids", help="Prompt as token ids, such as 1,2,3 (for engines without text).")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Most tokens to generate.")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", help="0 is off.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", help="1 is off.")] = 1.0,
    min_p: Annotated[float, typer.Option("--min-p", help="0 is off.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option("--repetition-penalty", help="1 is off.")] = 1.0,
    presence_penalty: Annotated[float, typer.Option("--presence-penalty", help="0 is off.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option("--frequency-penalty", help="0 is off.")] = 0.0,
    seed: Annotated[int | None, typer.Option("--seed", help="Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="Text that ends the answer; may be repeated.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on past the end-of-sequence token.")] = False,
    max_seq_len: options.MaxSeqLen = None,
    device: options.Device = "auto",
    verify: Annotated[bool, typer.Option("--verify", help="Hash every byte of the engine before it runs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per prompt, with token ids and times.")] = False,
) -> None:
    """Generate text from prompts.

    Examples:
      trtllm-bench generate --model smollm2 --chat "What is a GPU?"
      trtllm-bench generate --engine-dir llama.engine --token-ids 1,2,3
    """
    from trtllm_bench.build_progress import build_progress
    from trtllm_bench.targets.native import device_of
    from trtllm_engines import LLM, SamplingParams
    from trtllm_engines.engine.folder import load_engine
    from trtllm_engines.quantization.scheme import WIDE

    sampling = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
    )
    asked = _prompts(prompts, token_ids)
    if chat and token_ids is not None:
        raise BenchError("--chat takes a prompt of text, not --token-ids; leave one of them out")
    if (model is None) == (engine_dir is None):
        raise BenchError("give one of --model and --engine-dir")
    batch = len(asked) if engine_dir is None else None
    source = cast(Path | str, engine_dir if engine_dir is not None else model)
    with build_progress() as report:
        if engine_dir is not None:  # LLM takes a folder that is not an engine for a model
            load_engine(engine_dir, progress=report)
        llm = LLM(
            source,
            precision=precision,
            kv_dtype=kv_dtype,
            context_attention=context_attention or WIDE,
            weights=weights or "auto",
            max_batch_size=batch,
            max_seq_len=max_seq_len,
            device=device_of(device),
            check_logits=True,
            verify="full" if verify else "once",
            progress=report,
        )
    with llm:
        inputs = asked
        if chat:
            tokenizer = llm.tokenizer
            if tokenizer is None:
                raise BenchError(f"{source} has no tokenizer, so --chat has no meaning; give --token-ids")
            inputs = [tokenizer.encode_chat([{"role": "user", "content": str(prompt)}]) for prompt in asked]
        if as_json or len(asked) > 1:
            outputs = llm.generate(inputs, sampling)
            for prompt, output in zip(asked, outputs, strict=True):
                _print(prompt, output, as_json)
        else:
            outputs = [_stream(llm, inputs[0], sampling)]
    failed = [output for output in outputs if output.error]
    for output in failed:
        print(f"trtllm-bench: {output.error}", file=sys.stderr)
    if failed:
        raise typer.Exit(FAILURE if any(len(output.token_ids) for output in failed) else USAGE)


def _prompts(texts: list[str] | None, token_ids: str | None) -> list[Any]:
    if token_ids is not None:
        if texts:
            raise BenchError("give a text prompt or --token-ids, not both")
        try:
            return [[int(token) for token in token_ids.split(",")]]
        except ValueError:
            raise BenchError(f"--token-ids takes whole numbers separated by commas, not {token_ids!r}") from None
    if texts == ["-"]:
        return [sys.stdin.read()]
    if not texts:
        raise BenchError("no prompt given; name one or more, or - to read standard input")
    return list(texts)


def _stream(llm: LLM, prompt: Any, sampling: SamplingParams) -> RequestOutput:
    for chunk in llm.stream(prompt, sampling):
        if llm.tokenizer is not None:
            print(chunk.text, end="", flush=True)
        elif chunk.token_ids:
            print(*chunk.token_ids, end=" ", flush=True)
        if chunk.output is not None:
            if len(chunk.output.token_ids):
                print()
            _summary(chunk.output)
            return chunk.output
    raise AssertionError("a stream ends with its output")


def _summary(output: RequestOutput) -> None:
    """Speed of one answer, on standard error so that the text stays clean."""
    times = output.token_times_s
    if len(times) > 1 and not output.error:
        rate = (len(times) - 1) / float(times[-1] - times[0])
        first = float(times[0]) - output.arrival_s
        print(f"{len(times)} tokens ({output.finish_reason}), first after {first * 1e3:.0f} ms, then {rate:.1f} tok/s", file=sys.stderr)


def _print(prompt: Any, output: RequestOutput, as_json: bool) -> None:
    if as_json:
        import json

        times = [round(float(time) - output.arrival_s, 6) for time in output.token_times_s]
        content = {"text": output.text, "finish_reason": output.finish_reason, "error": output.error}
        print(json.dumps({**content, "token_ids": output.token_ids.tolist(), "token_times_s": times}))
        return
    shown = output.text if output.text else " ".join(map(str, output.token_ids.tolist()))
    print(f"> {prompt}\n{shown}\n")
