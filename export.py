"""Export PanGu-α to MindIR: `python export.py --checkpoint output --output device0`. See `--help`."""

import sys
from pathlib import Path

from src.common.errors import run_program
from src.inference.config import ExportConfig


def main() -> None:
    """Export a model as the command line says."""
    from src.checkpoint.settings import parse_with_checkpoint

    arguments = sys.argv[1:]
    config, weights = parse_with_checkpoint(ExportConfig, "export.py", arguments)
    if config.dry_run:
        from src.parallel.semi_auto.dry_run.run import dry_run

        dry_run(config, config.rank, ("prefill", "decode"), config.rows)
        return
    from src.checkpoint.finite import require_finite
    from src.checkpoint.vocabulary import check_trained_with
    from src.common.files import require_writable
    from src.common.memory import freeze_objects
    from src.common.vocabulary import vocabulary_md5
    from src.inference.manifest import Manifest
    from src.inference.mindir.export import default_lengths, export_model
    from src.inference.mindspore.load import open_checkpoint

    freeze_objects()
    data = config.data
    if data.tokenizer_path:
        check_trained_with(data)
    md5 = vocabulary_md5(data.tokenizer_path) if data.tokenizer_path else data.vocabulary_md5 or None
    opened = open_checkpoint(config, weights, cpu_kernels=False)
    lengths = sorted({*(config.prefill_lengths or default_lengths(config.model.seq_length)), config.model.seq_length})
    folder = Path(config.output.format(rank=opened.mesh.rank))
    require_writable(folder)  # before the model is loaded
    manifest = Manifest(
        config.graph_model,
        config.data.tokenizer,
        md5,
        config.generation.end_token,
        config.rows,
        lengths,
        lengths if config.task else [],
        opened.mesh.rank,
        opened.mesh.plan.world_size,
    )
    if weights and not config.allow_nan:
        for parameter in opened.model.get_parameters():
            require_finite(parameter.asnumpy(), parameter.name, weights)
    export_model(opened.model, manifest, folder)
    print("Export finished and now exit.")


if __name__ == "__main__":
    run_program(main)
