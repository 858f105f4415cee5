"""predict.py as on an Ascend device of the kind A2, on a CPU: the operators of attention are emulated."""

from predict import main
from src.common.errors import run_program
from src.pangu_alpha_config import RunConfig
from tests.support.ascend_operators import emulate

if __name__ == "__main__":
    emulate(setattr)
    RunConfig.has_flash_generation = property(lambda config: config.generation.use_past)
    run_program(main)
