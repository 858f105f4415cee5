"""Parse the commands that the scripts start."""

# Arguments of run_distribute_train.sh.
TRAIN = ["data", "table.json", "8", "fp32", "2.6B", "1", "1", "16", "0", "8"]


def split(arguments):
    """Return the launcher's flags, the program, and the program's flags; a later flag replaces an earlier one."""
    assert arguments[:2] == ["-m", "src.parallel.launch"]
    end = arguments.index("--")
    return pairs(arguments[2:end]), arguments[end + 1], pairs(arguments[end + 2 :])


def pairs(flags):
    """Return a flag list as a dict."""
    assert len(flags) % 2 == 0 and all(name.startswith("--") for name in flags[::2]), flags
    return dict(zip(flags[::2], flags[1::2], strict=True))
