"""MindFormers' trainer with a model that its user built."""

import numpy as np
import pytest
from mindformers import Trainer
from mindspore import Tensor

from src.dataset import eod_reset
from src.pangu_alpha import PanguAlphaModel, PanguAlphaWithLoss
from tests.ports.mindformers.in_mindformers.conftest import GOLDEN
from tests.support.programs import write_mindrecord


def test_the_settings_of_the_user_s_model_choose_the_records(golden_model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = np.resize(GOLDEN["peer"]["ids"], (8, 49)).astype(np.int32)
    ids[:, 11] = 9
    write_mindrecord(tmp_path / "records.mindrecord", ids)
    golden_model.config.eod_reset, golden_model.config.eod_token = True, 9
    trainer = Trainer(
        task="text_generation",
        model=golden_model,
        model_name="pangualpha_tiny",
        eval_dataset=str(tmp_path / "records.mindrecord"),
    )
    trainer.evaluate()
    model = PanguAlphaModel(golden_model.config.ours())
    for parameter in model.get_parameters():
        parameter.set_data(Tensor(GOLDEN["weights"][parameter.name]))
    network = PanguAlphaWithLoss(model.config, model)
    right = float(network(Tensor(ids), *map(Tensor, eod_reset(ids, 9))))
    told = capsys.readouterr().out
    assert float(told.split("'loss': ")[1].split(",")[0]) == pytest.approx(right, abs=1e-5)
