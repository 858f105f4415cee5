"""The chip is asked for its kind. MindSpore's answer is a stand-in here."""

import mindspore as ms
import pytest

from src.common.errors import InputError
from src.common.settings import ParallelConfig
from src.parallel.chip import chip_of, settle_chip


@pytest.fixture
def device(monkeypatch):
    """Let MindSpore say the name of a chip."""

    def answers(name):
        class Context:
            @staticmethod
            def get_ascend_soc_version():
                return name

        monkeypatch.setattr(ms.context.MSContext, "get_instance", lambda: Context)

    return answers


@pytest.mark.parametrize(
    "name, kind", [("ascend910", "910A"), ("Ascend910B3", "A2"), ("ascend910b", "A2"), ("ascend910_93", "A3")]
)
def test_a_device_says_its_kind(device, name, kind):
    device(name)
    for told in ("auto", kind):
        config = ParallelConfig(device_target="Ascend", chip=told)
        settle_chip(config)
        assert config.chip == kind


def test_a_cpu_is_not_asked(device):
    device("none")
    config = ParallelConfig()
    settle_chip(config)
    assert config.chip == "auto"


@pytest.mark.parametrize(
    "name, settings, told",
    [
        ("ascend910", dict(chip="A2"), "parallel.chip is A2, but the device is a 910A"),
        ("ascend910", dict(attention="flash"), "parallel.attention flash .* but the device is a 910A; give auto"),
        ("ascend310p", {}, "the device is an Ascend 'ascend310p', which is none of A3, A2, 910A"),
    ],
)
def test_what_the_device_is_not_is_refused(device, name, settings, told):
    device(name)
    with pytest.raises(InputError, match=told):
        settle_chip(ParallelConfig(device_target="Ascend", **settings))


def test_no_name_is_none():
    with pytest.raises(InputError, match="is none of"):
        chip_of("")
