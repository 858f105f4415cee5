"""Training spread over processes, compared with one process: data, dropout, overflows and clipping are the same."""

import pytest

from src.cpu_kernels import build
from src.cpu_kernels.onednn import has_half_gemm
from tests.support.distributed_runs import DENSE, MOE, TRAINING, Run, differences
from tests.support.programs import metrics

TOLERANCE = {"loss": 1e-5, "grad_norm": 1e-5, "validation_loss": 1e-5, "weights": 1e-4}
FOUR_LAYERS = DENSE | {"num_layers": 4}
QUICK = {
    "dp2 with ZeRO": Run({"data": 2, "optimizer_shard": True}),
    "tp2 x pp2": Run({"tensor": 2, "pipeline": 2}),
    "experts over ep2": Run({"expert": 2}, MOE),
}
EVERY_SECOND = MOE | {"expert_interval": 2, "num_layers": 3}
SLOW = {
    "tp2 with sequence parallel": Run({"tensor": 2, "sequence_parallel": True}),
    "pp2": Run({"pipeline": 2}),
    "pp2 in virtual stages": Run({"pipeline": 2, "virtual_stages": 2}, FOUR_LAYERS),
    "dp2": Run({"data": 2}),
    "tp2": Run({"tensor": 2}),
    "tp2 with ZeRO": Run({"tensor": 2, "optimizer_shard": True}),
    "tp2, the word table whole": Run({"tensor": 2, "vocab_parallel": False}),
    "dp2 x tp2 x pp2 with ZeRO, the word table whole": Run(
        {"data": 2, "tensor": 2, "pipeline": 2, "optimizer_shard": True, "vocab_parallel": False},
        DENSE | {"vocab_size": 203},
    ),
    "tp2 with sequence parallel, the word table whole": Run(
        {"tensor": 2, "sequence_parallel": True, "vocab_parallel": False}
    ),
    "pp2 with LAMB": Run({"pipeline": 2}, training={"optimizer": "lamb"}),
    "dp2 x tp2": Run({"data": 2, "tensor": 2}),
    "dp2 x pp2 with ZeRO": Run({"data": 2, "pipeline": 2, "optimizer_shard": True}),
    "dp2 x tp2 x pp2 with ZeRO": Run({"data": 2, "tensor": 2, "pipeline": 2, "optimizer_shard": True}),
    "tp2 x pp2 with sequence parallel": Run({"tensor": 2, "pipeline": 2, "sequence_parallel": True}),
    "infinite gradients on tp2 x pp2": Run({"tensor": 2, "pipeline": 2}, training={"loss_scale": 3e38, "steps": 70}),
    "recompute on dp2 with ZeRO": Run({"data": 2, "optimizer_shard": True, "recompute": True}),
    "recompute on tp2 with sequence parallel": Run({"tensor": 2, "sequence_parallel": True, "recompute": True}),
    "recompute on pp2": Run({"pipeline": 2, "recompute": True}),
    "selective recompute on tp2 x pp2": Run({"tensor": 2, "pipeline": 2, "recompute": "selective"}),
    "recompute of experts over ep2": Run({"expert": 2, "recompute": True}, MOE),
    "tp2 x pp2 in virtual stages": Run({"tensor": 2, "pipeline": 2, "virtual_stages": 2}, FOUR_LAYERS, micro_batches=4),
    "dp2 x tp2 x pp2 in virtual stages with ZeRO and sequence parallel": Run(
        {
            "data": 2,
            "tensor": 2,
            "pipeline": 2,
            "virtual_stages": 2,
            "optimizer_shard": True,
            "sequence_parallel": True,
        },
        FOUR_LAYERS,
    ),
    "recompute on pp2 in virtual stages": Run({"pipeline": 2, "virtual_stages": 2, "recompute": "full"}, FOUR_LAYERS),
    "pp3 in virtual stages": Run({"pipeline": 3, "virtual_stages": 2}, DENSE | {"num_layers": 7}, micro_batches=3),
    "experts over pp2 in virtual stages": Run(
        {"pipeline": 2, "virtual_stages": 2}, MOE | {"num_layers": 5, "expert_interval": 2}
    ),
    "pp4": Run({"pipeline": 4}, FOUR_LAYERS, micro_batches=4),
    "experts over dp2 x ep2 with ZeRO": Run({"data": 2, "expert": 2, "optimizer_shard": True}, MOE),
    "experts over dp2 x ep2": Run({"data": 2, "expert": 2}, MOE),
    "experts over ep2 x tp2": Run({"expert": 2, "tensor": 2}, MOE),
    "experts over tp2 with sequence parallel": Run({"tensor": 2, "sequence_parallel": True}, MOE),
    "experts over pp2": Run({"pipeline": 2}, MOE),
    "experts in one of two stages, over ep2, without kernels": Run(
        {"expert": 2, "pipeline": 2, "cpu_kernels": False}, EVERY_SECOND
    ),
}
CASES = [
    *(pytest.param(run, id=name) for name, run in QUICK.items()),
    *(pytest.param(run, id=name, marks=pytest.mark.slow) for name, run in SLOW.items()),
]


@pytest.mark.parametrize("run", CASES)
def test_losses_norms_and_weights_are_those_of_one_process(finished, run):
    found = differences(finished(run), finished(run.alone))
    print({kind: f"{difference:.1e}" for kind, difference in found.items()})
    assert all(found[kind] <= limit for kind, limit in TOLERANCE.items()), found


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan",
    [{"tensor": 2, "pipeline": 2}, {"data": 2, "tensor": 2, "optimizer_shard": True, "sequence_parallel": True}],
    ids=str,
)
def test_products_in_bfloat16_round_on_ranks_as_on_one_process(finished, plan):
    """Sums of parts differ in their last bit of float32, and so some numbers are rounded to the next bfloat16."""
    library = build.library()
    if library is None or not has_half_gemm(library):
        pytest.skip("no products in bfloat16 here")
    run = Run(plan, DENSE | {"compute_dtype": "bfloat16"}, {"loss_scale": 1024.0, "loss_scale_window": 1000})
    found = differences(finished(run), finished(run.alone))
    print({kind: f"{difference:.1e}" for kind, difference in found.items()})
    assert all(found[kind] <= 100 * limit for kind, limit in TOLERANCE.items()), found
    in_full = Run(model=DENSE, training=run.training)
    assert differences(finished(run.alone), finished(in_full))["loss"] > 1e-6  # the products are in bfloat16


@pytest.mark.parametrize("model", [DENSE, MOE], ids=["dense", "experts"])
def test_what_is_compared_holds_something(finished, model):
    """The compared run has overflows at first and later, clipped and unclipped steps, and losses that fall."""
    lines = [line for line in metrics(finished(Run(model=model))) if "loss" in line]
    overflows = [line["overflow"] for line in lines]
    assert overflows[0] and not overflows[5] and any(overflows[6:])
    norms = [line["grad_norm"] for line in lines if not line["overflow"]]
    assert max(norms) > TRAINING["clip_norm"] > min(norms)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.05
