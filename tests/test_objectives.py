"""What training minimises: each objective against its formula, and what all of them have to keep."""

import json
from functools import partial

import pytest
import torch
from torch import nn

from lit_seq2seq import LitSeq2Seq
from lit_seq2seq.cli import main
from lit_seq2seq.inference.pipelines import load_model
from lit_seq2seq.training import CrossEntropy, Loss, Objective
from lit_seq2seq.types import UserError
from tests.tiny import Trained, make_data, make_model, make_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")


class Focal(Objective):
    """`-sum_t (1 - p_t)^gamma log p_t` (Lin et al. 2017), with a scale of its own that learns."""

    def __init__(self, label_smoothing: float = 0.0, gamma: float = 2.0) -> None:
        super().__init__(label_smoothing)
        self.gamma = gamma
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, model, batch):
        output = model.net.teach(model.net.encode(batch.source), batch.target)
        log_probs = model.net.output.log_probs(output, batch.source.copies)[batch.target.mask]
        chosen = log_probs.gather(1, batch.target.values[batch.target.mask][:, None])
        total = -(self.scale * (1 - chosen.exp()) ** self.gamma * chosen).sum()
        return Loss(total, -chosen.sum().detach(), batch.target.total)


def test_an_objective_in_a_file_of_its_own_trains_resumes_and_is_saved(trained: Trained, tmp_path, capsys):
    named = {"class_path": "tests.test_objectives.Focal", "init_args": {"gamma": 1.0}}
    options = [f"--model.objective={json.dumps(named)}", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", "--config", str(trained.recipe), *options, "--trainer.max_epochs=1"]) == 0
    last = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    assert main(["fit", "--config", str(trained.recipe), *options, f"--ckpt_path={last}"]) == 0
    folder = tmp_path / "version_0" / "model"
    described = json.loads((folder / "config.json").read_text())["model"]["objective"]
    assert described == named
    loaded = LitSeq2Seq.from_pretrained(folder, trust="tests")
    assert isinstance(loaded.objective, Focal)
    assert loaded.objective.gamma == 1
    assert load_model(folder).generate(["eins zwei"])[0][0].text is not None  # needs no objective, nor trust in it


def test_parameters_of_an_objective_learn(tmp_path):
    model, data = make_model(objective=partial(Focal, gamma=0.0)), make_data()
    make_trainer(tmp_path).fit(model, datamodule=data)
    assert model.objective.scale != 1


def test_smoothing_out_of_its_range():
    with pytest.raises(UserError, match=r"label_smoothing must be from 0 to below 1, got 1\.0"):
        CrossEntropy(1.0)
