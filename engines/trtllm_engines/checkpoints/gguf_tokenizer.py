"""The tokenizer a GGUF file carries, written as Hugging Face's `tokenizer.json` and `tokenizer_config.json`.

Only byte-level BPE (`gpt2` in GGUF's words) is covered, with the pre-tokenizer splits we could check; a file with another kind gets no
tokenizer, and the engine takes token ids only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import token_id
from trtllm_engines.models.gguf_file import GgufFile

_LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


def _pre_tokenizer(name: str) -> Any:
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    split = {"llama-bpe": _LLAMA3_SPLIT, "qwen2": _QWEN2_SPLIT}.get(name)
    if split is None:
        return None
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def write_tokenizer(file: GgufFile, folder: Path) -> bool:
    """Writes both files into `folder`; False (and nothing written) when the tokenizer is not covered."""
    metadata = file.tokenizer
    pre_tokenizer = _pre_tokenizer(metadata.text("pre"))
    if metadata.text("model") != "gpt2" or pre_tokenizer is None:
        return False
    tokens = metadata.strings("tokens")
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in metadata.strings("merges"))]
    try:
        tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, fuse_unk=False))
    except Exception as error:
        raise EngineError(f"{metadata.source}: its tokens and merges do not go together ({error})") from None
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in file.special_tokens()])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }
    for name, key in named.items():
        number = token_id(metadata, f"{key}_token_id")
        if number is not None:
            if number >= len(tokens):
                raise metadata.wrong(f"{key}_token_id", f"one of its {len(tokens)} tokens")
            config[name] = tokens[number]
    template = file.general.text("tokenizer.chat_template")
    if template:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    return True
