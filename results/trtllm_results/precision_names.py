"""Names of precisions: NVIDIA's and torch's for ours, so that another tool's result stands beside ours of the same precision.

The results side cannot ask the engine, so these are data here; a test holds them to the engine's schemes. NVFP4 and MXFP4 are left out:
where a GPU multiplies fp4 they are more than our weight-only precisions of those formats.
"""

from __future__ import annotations

from collections.abc import Mapping

_OF_NVIDIA: Mapping[str, str] = {
    "fp8": "fp8",
    "fp8_block_scales": "fp8_block",
    "fp8_pb_wo": "fp8_block",
    "fp8_per_channel_per_token": "fp8_rowwise",
    "fp8_wo": "fp8_wo",
    **dict.fromkeys(("w4a16", "w4a16_awq", "w4a16_gptq", "int4_awq", "int4_gptq"), "int4"),
    **dict.fromkeys(("w4a8_awq", "w4a8"), "w4a8"),
    **dict.fromkeys(("w8a8_sq_per_channel_per_token_plugin", "w8a8_sq_per_channel"), "int8_sq"),
    **dict.fromkeys(("w8a16", "w8a16_gptq"), "int8_wo"),
    "w4a16_nvfp4": "nvfp4_wo",
    "w4a16_mxfp4": "mxfp4_wo",
    "mixed_precision": "mixed",
    "no_quant": "bf16",
}
"""TensorRT-LLM's and ModelOpt's `QuantAlgo`, in lower case."""
_OF_TORCH: Mapping[str, str] = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "bf16": "bf16", "fp16": "fp16"}


def our_precision(name: str) -> str:
    """Our name of a precision that is given by one of NVIDIA's or torch's, in capitals or not; any other name as it is."""
    short = name.lower().removeprefix("torch.")
    return _OF_NVIDIA.get(short) or _OF_TORCH.get(short, name)
