"""The process of one rank: `python -m src.parallel.semi_auto.dry_run JOB.json`. run.py starts it."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from src.common.errors import run_program
from src.pangu_alpha_config import load_config
from src.parallel.semi_auto.dry_run.compile import compile_graph


def main() -> None:
    """Compile the graph of the job, and write result.json beside the job."""
    job_file = Path(sys.argv[1])
    job = json.loads(job_file.read_text())
    folder = job_file.parent / "graph"
    folder.mkdir()
    compiled = compile_graph(
        load_config(job_file.parent / "config.yaml"), job["rank"], job["graph"], job["rows"], folder
    )
    collectives = [asdict(one) | {"count": number} for one, number in compiled.graph.collectives.items()]
    parameters = {name: asdict(array) for name, array in compiled.graph.parameters.items()}
    result = {
        "seconds": compiled.seconds,
        "peak_memory": compiled.peak_memory,
        "slices": compiled.slices,
        "collectives": collectives,
        "parameters": parameters,
        "operators": compiled.graph.operators,
        "options": compiled.options,
        "alive": asdict(compiled.graph.alive),
    }
    (job_file.parent / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    run_program(main)
