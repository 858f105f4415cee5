"""Data-sheet numbers of the machines that `--search` knows, and what was fitted to published runs on them."""

from dataclasses import dataclass

from src.common.checks import require
from src.common.settings import ParallelConfig

MODEL_OF_HUAWEI = "github.com/Ascend/msmodeling, tensor_cast/device.py"


@dataclass(frozen=True)
class Shares:
    """Shares of the data-sheet numbers that a machine reaches. They are fitted (fit.py), not measured.

    Args:
        products: Share of the peak that matrix products reach.
        traffic: Share of the memory's bandwidth that all other operators reach.
        links: Share of the bandwidth between devices that messages reach.
    """

    products: float
    traffic: float
    links: float


@dataclass(frozen=True)
class Machine:
    """One device of a cluster, and its links.

    Args:
        title: Name of the device and its server.
        peak: FLOP/s of matrix products in half precision.
        bandwidth: Bytes/s of the device's memory.
        joined: Number of devices that fast links join.
        inside: Bytes/s that a device sends over the fast links, one way.
        outside: Bytes/s that a device sends to other servers, one way.
        sources: Where the numbers above are from.
        shares: What was fitted.
        fitted_to: Machine whose published runs the shares were fitted to; it is another one if this one has none.
    """

    title: str
    peak: float
    bandwidth: float
    joined: int
    inside: float
    outside: float
    sources: tuple[str, ...]
    shares: Shares
    fitted_to: str


_FITTED_TO_A2 = Shares(0.66, 0.35, 0.7)
MACHINES = {
    "A100": Machine(
        "NVIDIA A100 80 GB, DGX A100",
        peak=312e12,
        bandwidth=2.0e12,
        joined=8,
        inside=300e9,
        outside=25e9,
        sources=("NVIDIA A100 data sheet", "DGX A100: 8 links of 200 Gb/s (arXiv 2104.04473, section 5)"),
        shares=Shares(0.72, 1.0, 0.7),
        fitted_to="A100",
    ),
    "910A": Machine(
        "Ascend 910A 32 GB, Atlas 800",
        peak=256e12,
        bandwidth=1.2e12,
        joined=4,
        inside=90e9,
        outside=12.5e9,
        sources=("Hot Chips 31, DaVinci: 256 TFLOP/s, 1.2 TB/s, 3 links of 30 GB/s, 100 Gb/s",),
        shares=Shares(0.38, 1.0, 0.9),
        fitted_to="910A",
    ),
    "A2": Machine(
        "Ascend 910B 64 GB (313 TFLOP/s), Atlas 800T A2, Atlas 900 A2",
        peak=313e12,
        bandwidth=1.6e12,
        joined=8,
        inside=196e9,
        outside=25e9,
        sources=(
            f"{MODEL_OF_HUAWEI}: ATLAS_800_A2_313T_64G",
            "200 Gb/s between servers: arXiv 2504.07866, section 4.1",
        ),
        shares=_FITTED_TO_A2,
        fitted_to="A2",
    ),
    "A3": Machine(
        "one die of an Ascend 910C (64 GB, 376 TFLOP/s), Atlas 900 A3",
        peak=376e12,
        bandwidth=1.6e12,
        joined=768,
        inside=196e9,
        outside=25e9,
        sources=(
            f"{MODEL_OF_HUAWEI}: ATLAS_800_A3_752T_128G_DIE",
            "200 Gb/s a die between supernodes: arXiv 2506.12708, section 3",
        ),
        shares=_FITTED_TO_A2,
        fitted_to="A2",
    ),
}


def machine_name(parallel: ParallelConfig) -> str:
    """Return the name in MACHINES of the devices that the settings mean.

    Raises:
        InputError: They name no machine that a plan can be chosen for.
    """
    if parallel.device_target == "GPU":
        require(
            parallel.chip == "auto",
            f"parallel.device_target is GPU, but parallel.chip {parallel.chip} is an Ascend: leave one of them out",
        )
        return "A100"
    require(
        parallel.chip != "auto",
        "--search must know the machine: give --parallel.chip A2 or A3 (Ascend), or --parallel.device_target GPU (an "
        "A100)",
    )
    return parallel.chip
