"""PanGu-α as a plug-in of MindFormers: `from ports.mindformers import register; register()`.

MindFormers had PanGu-α until 1.3.2. After `register()`, its Auto classes, Trainer and pipeline know it again, under the
names of ports.mindformers.pretrained.NAMES. docs/mindformers.md shows the commands. Nothing in src imports this folder.
"""

import importlib.metadata

from src.common.errors import InputError

TESTED = ("1.9.0", "2.1.0")  # versions of MindFormers that the tests run with


def register() -> None:
    """Tell MindFormers about PanGu-α. A second call does nothing more.

    Raises:
        InputError: MindFormers is not installed, or in a version that was not tried.
    """
    try:
        version = importlib.metadata.version("mindformers")
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            "MindFormers is not installed in this environment: `bash scripts/setup_env.sh mindformers` makes one, "
            ".venv-mindformers"
        ) from error
    if version not in TESTED:
        raise InputError(
            f"MindFormers {version} is installed; the plug-in runs with {' and '.join(TESTED)}: `bash "
            "scripts/setup_env.sh mindformers` makes an environment"
        )
    from ports.mindformers.registration import add_to_mindformers

    add_to_mindformers()
