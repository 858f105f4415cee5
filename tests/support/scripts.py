"""Copies of the scripts that start another Python, and the commands that they start."""

import shutil
from pathlib import Path

from tests.support.documentation import ROOT

# Arguments of run_distribute_train.sh.
TRAIN = ["data", "table.json", "8", "fp32", "2.6B", "1", "1", "16", "0", "8"]


def copy_of_the_scripts(root: Path, python: str) -> None:
    """Copy the scripts to a folder, with a Python of its own, which is the script `python`."""
    shutil.copytree(ROOT / "scripts", root / "scripts", symlinks=True)
    (root / "scripts/setup_env.sh").write_text("exit 0\n")
    for path in ("bin/python", ".venv/bin/python"):
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text(python)
        (root / path).chmod(0o755)


def split(arguments):
    """Return the launcher's flags, the program, and the program's flags; a later flag replaces an earlier one."""
    assert arguments[:2] == ["-m", "src.parallel.launch"]
    end = arguments.index("--")
    return pairs(arguments[2:end]), arguments[end + 1], pairs(arguments[end + 2 :])


def pairs(flags):
    """Return a flag list as a dict."""
    assert len(flags) % 2 == 0 and all(name.startswith("--") for name in flags[::2]), flags
    return dict(zip(flags[::2], flags[1::2], strict=True))
