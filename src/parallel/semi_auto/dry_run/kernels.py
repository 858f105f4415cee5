"""Which operators of a compiled graph a user of Ascend looks for: fused ones, products of attention, slow ones."""

from collections import Counter

FUSED = (
    "FlashAttentionScore",
    "FlashAttentionScoreGrad",
    "PromptFlashAttention",
    "IncreFlashAttention",
    "FusedInferAttentionScore",
    "PagedAttention",
    "KVCacheScatterUpdate",
    "ReshapeAndCache",
)
BATCHED = "BatchMatMul"  # of queries and keys, of weights and values, and of experts

# Operators without a kernel for the AI Core, in MindSpore 2.10.0: its folder ops/_op_impl/aicpu registers them, and its
# Ascend plugin has no aclnn kernel of the name. They run on the few general processors of the chip (AICPU).
AICPU = ("RightShift", "ScatterNdMin", "ScatterNdMax", "ScatterNdUpdate")


REGISTER = "NPUGetFloatStatusV2"  # reads the overflow register of a 910A; see src/parallel/float_status.py


def told_operators(operators: Counter[str]) -> str:
    """Return what `--dry_run` says about the calls of operators in one run of a graph."""
    fused, slow = _counted(operators, FUSED), _counted(operators, AICPU)
    told = f"fused operators: {fused}; {operators[BATCHED]} {BATCHED}; on the AICPU: {slow}"
    return f"{told}; {operators[REGISTER]} {REGISTER}" if operators[REGISTER] else told


def _counted(operators: Counter[str], names: tuple[str, ...]) -> str:
    return ", ".join(f"{operators[name]} {name}" for name in names if operators[name]) or "none"
