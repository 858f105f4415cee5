"""Train PanGu-α: `python train.py --mode tiny --data.train DIR`. See `--help`."""

import sys

from src.common.cli import parse
from src.common.errors import run_program
from src.common.model_sizes import told_recipe
from src.parallel.plan.fitting import require_fit
from src.parallel.plan.report import describe
from src.training.config import TrainConfig, recipe_of


def main() -> None:
    """Parse the command line, build the run, and train."""
    recipe = recipe_of(sys.argv[1:])
    config = parse(TrainConfig, "train.py", after_mode=recipe)
    if recipe:
        print(told_recipe(recipe))
    if config.search:
        from src.parallel.plan.search.report import describe_search

        print(describe_search(config))
        return
    if config.plan:
        print(describe(config))
        return
    if config.dry_run:
        from src.parallel.semi_auto.dry_run.run import dry_run

        dry_run(config, config.rank)
        return
    # MindSpore takes seconds to import, so it is imported after the arguments are checked.
    from src.common.memory import freeze_objects
    from src.parallel.chip import settle_chip
    from src.parallel.mesh import prepare_device
    from src.training.trainer import Trainer

    freeze_objects()
    prepare_device(config.parallel)
    settle_chip(config.parallel)
    require_fit(config)
    Trainer(config).run()


if __name__ == "__main__":
    run_program(main)
