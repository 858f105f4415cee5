"""A small model under any plan, and the plan's figures for a rank."""

from dataclasses import replace

from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.pangu_alpha_config import PanguAlphaConfig
from src.parallel.plan.costs import communication, rank_memory
from src.training.config import TrainConfig

# The model has 40,736 parameters: 3 layers of 12,704, tables of 1,536 (words), 512 (positions) and 512 (queries), and a
# LayerNorm of 64.
MODEL = PanguAlphaConfig(vocab_size=48, hidden_size=32, num_layers=3, num_heads=4, seq_length=16, dropout_rate=0.0)
HIDDEN = 2 * 16 * 32 * 4  # bytes of the hidden states of 2 sequences


def config_of(parallel=None, model=None, **training):
    return TrainConfig(
        replace(MODEL, **model or {}),
        DataConfig(),
        TrainingConfig(**dict(batch_size=2) | training),
        ParallelConfig(**parallel or {}),
        GenerationConfig(),
    )


def held_by(config, rank=0):
    """Return (parameters, weights, gradients and their sums, moments, copies of weights) of a rank."""
    memory = rank_memory(config, rank)
    return memory.parameters, memory.weights, memory.gradients + memory.sums, memory.moments, memory.copies


def payloads(config, rank=0):
    return {(one.kind, one.operation, one.ranks): one.payload for one in communication(config, rank)}
