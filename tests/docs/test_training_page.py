"""docs/training.md names every setting of the data and of training, with its default."""

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from src.common.settings import DataConfig, TrainingConfig

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `((?:data|training)\.\w+)` \| ([^|]+) \| (.+) \|$", re.MULTILINE)


def default(field):
    assert field.default is not MISSING
    if field.default is None:
        return "`training.steps`"  # of decay_steps
    if isinstance(field.default, bool):
        return str(field.default).lower()
    if isinstance(field.default, str):
        return field.default or '""'
    return f"{field.default:.0f}" if field.default > 1e6 else str(field.default)


@pytest.mark.parametrize("page", ["docs/training.md", "docs/zh/training.md"])
def test_every_setting_has_its_default_and_meaning(page):
    groups = {"data": DataConfig, "training": TrainingConfig}
    settings = {f"{group}.{field.name}": default(field) for group, kind in groups.items() for field in fields(kind)}
    told = ROW.findall((ROOT / page).read_text(encoding="utf-8"))
    assert {name: value for name, value, _ in told} == settings
    assert len(told) == len(settings)
