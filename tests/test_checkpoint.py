"""Which checkpoints a run keeps, told by scores that are written down beforehand."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from lit_seq2seq.callbacks import Checkpoint
from tests.tiny import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")
NAN = float("nan")


class Scripted(LightningModule):
    """Logs a given `val_bleu` and, if any, `val_loss` after each epoch; its one weight counts the epochs."""

    def __init__(self, scores: Sequence[float], losses: Sequence[float]) -> None:
        super().__init__()
        self.scores, self.losses = scores, losses
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, _):
        return -self.weight * batch.mean()

    def validation_step(self, batch, _):
        epoch = self.current_epoch
        self.log("val_bleu", torch.tensor(self.scores[epoch]))
        if self.losses:
            self.log("val_loss", torch.tensor(self.losses[epoch]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def train_dataloader(self):
        return DataLoader(torch.ones(1), batch_size=1)

    val_dataloader = train_dataloader


def fit(folder: Path, scores: Sequence[float], losses: Sequence[float] = (), **options) -> Checkpoint:
    resume, epochs = options.pop("resume", None), options.pop("epochs", len(scores))
    keep = Checkpoint(**{"monitor": "val_bleu", "mode": "max", "dirpath": str(folder), **options})
    trainer = make_trainer(folder, keep, max_epochs=epochs, enable_checkpointing=True)
    trainer.fit(Scripted(scores, losses), ckpt_path=resume, weights_only=True if resume else None)
    return keep


def epoch_of(path: str) -> int:
    """The epoch in which a checkpoint was written, told by its weight."""
    return int(torch.load(path, weights_only=True)["state_dict"]["weight"]) - 1


def kept(keep: Checkpoint) -> list[int]:
    folder = Path(keep.dirpath or "")
    assert {str(path) for path in folder.glob("epoch*.ckpt")} == set(keep.best_k_models)
    return sorted(map(epoch_of, keep.best_k_models))


@pytest.mark.parametrize(
    ("mode", "scores", "losses", "best"),
    [
        ("max", [50.0, 100.0, 100.0, 100.0], [4.0, 3.0, 2.0, 1.0], 3),  # the loss still falls
        ("max", [100.0, 100.0, 100.0, 100.0], [4.0, 1.0, 2.0, 3.0], 1),  # it rises again
        ("max", [100.0, 100.0, 100.0], [1.0, 1.0, 1.0], 2),  # equal, too
        ("max", [100.0, 100.0, 99.0], [2.0, 3.0, 1.0], 0),  # only among equals
        ("max", [100.0, 100.0, 100.0], [], 2),  # there is none
        ("max", [100.0, 100.0, 100.0], [2.0, NAN, 3.0], 0),
        ("max", [NAN, 0.0, NAN], [1.0, 3.0, 0.5], 1),
        ("min", [5.0, 0.0, 0.0, 7.0], [4.0, 3.0, 2.0, 1.0], 2),
        ("min", [0.0, 0.0, 0.0], [1.0, 2.0, 3.0], 0),
        ("min", [0.0, 0.0, 0.0], [], 2),
        ("min", [NAN, 9.0, NAN], [1.0, 3.0, 0.5], 1),
    ],
)
def test_equal_scores_go_to_the_lower_loss_and_then_to_the_later(tmp_path, mode, scores, losses, best):
    keep = fit(tmp_path, scores, losses, mode=mode)
    assert kept(keep) == [best] == [epoch_of(keep.best_model_path)]
    assert keep.best_model_score == scores[best]
    state = next(iter(torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"].values()))
    assert state["best_model_path"] == keep.best_model_path


def test_equal_losses_go_to_the_later(tmp_path):
    assert kept(fit(tmp_path, [1.0, 2.0, 3.0], [7.0, 7.0, 8.0], monitor="val_loss", mode="min")) == [1]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_several_are_kept_among_equals(tmp_path, mode):
    scores, losses = [1.0] * 6, [3.0, 1.0, 5.0, 2.0, 2.0, 4.0]
    keep = fit(tmp_path, scores, losses, mode=mode, save_top_k=3)
    assert kept(keep) == [1, 3, 4]
    assert epoch_of(keep.best_model_path) == 1
    assert epoch_of(keep.kth_best_model_path) == 3
    assert kept(fit(tmp_path / "all", scores, losses, mode=mode, save_top_k=-1)) == list(range(6))


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_resumed_run_decides_ties_as_one_that_was_never_interrupted(tmp_path, stop):
    scores, losses = [1.0, 2.0, 2.0, 2.0, 2.0, 1.0], [3.0, 1.0, 5.0, 2.0, 1.0, 0.0]
    whole = fit(tmp_path / "whole", scores, losses, save_top_k=2)
    folder = tmp_path / "cut"
    fit(folder, scores, losses, save_top_k=2, epochs=stop)
    resumed = fit(folder, scores, losses, save_top_k=2, resume=folder / "last.ckpt")
    assert kept(resumed) == kept(whole) == [1, 4]
    assert epoch_of(resumed.best_model_path) == epoch_of(whole.best_model_path) == 4


def test_a_resumed_run_decides_ties_where_its_folder_was_moved(tmp_path):
    scores, losses = [2.0, 2.0, 2.0], [1.0, 3.0, 2.0]
    fit(tmp_path / "old", scores, losses, epochs=2)
    (tmp_path / "old").rename(tmp_path / "new")
    keep = fit(tmp_path / "new", scores, losses, resume=tmp_path / "new" / "last.ckpt")
    assert kept(keep) == [0] == [epoch_of(keep.best_model_path)]


def test_a_run_of_an_older_version_goes_on_with_its_ties(tmp_path):
    """Checkpoints of 0.1 do not know the losses of those that they keep: the later one counts as better."""
    scores, losses = [2.0, 2.0, 1.0, 2.0], [1.0, 2.0, 0.0, 3.0]
    fit(tmp_path, scores, losses, epochs=1)
    path = tmp_path / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert next(iter(checkpoint["callbacks"].values())).pop("ties")
    torch.save(checkpoint, path)
    assert kept(fit(tmp_path, scores, losses, resume=path)) == [1]


def test_fewer_are_kept_after_resuming(tmp_path):
    scores, losses = [1.0, 4.0, 2.0, 3.0, 4.0], [1.0] * 5
    fit(tmp_path, scores, losses, save_top_k=3, epochs=3)
    assert kept(fit(tmp_path, scores, losses, save_top_k=1, resume=tmp_path / "last.ckpt")) == [4]


@pytest.mark.parametrize(("move", "gone"), [(False, [0]), (False, [0, 1, 2]), (True, [2]), (True, [0, 1])])
def test_a_resumed_run_does_not_count_on_checkpoints_that_are_gone(tmp_path, move, gone):
    """They were deleted, or replaced since the older checkpoint was written that the run goes on from."""
    scores, folder = [3.0, 2.0, 1.0, 0.5, 0.7], tmp_path / "run"
    fit(folder, scores, save_top_k=3, epochs=3)
    for epoch in gone:
        next(folder.glob(f"epoch={epoch}*")).unlink()
    if move:
        folder = folder.rename(tmp_path / "moved")
    with pytest.warns(UserWarning, match=rf"no longer has .*epoch={gone[-1]}-.*: the best of the others becomes"):
        keep = fit(folder, scores, save_top_k=3, resume=folder / "last.ckpt")
    there = [epoch for epoch in (0, 1, 2, 4, 3) if epoch not in gone]  # the best first
    assert kept(keep) == sorted(there[:3])
    assert epoch_of(keep.best_model_path) == there[0]


def test_a_run_that_goes_on_in_another_folder_tells_that_its_best_is_not_there(tmp_path):
    fit(tmp_path / "old", [9.0, 2.0], epochs=2)
    fit(tmp_path / "new", [9.0])  # of another run, with the same name
    other = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    with pytest.warns(UserWarning, match="new no longer has epoch=0-val_bleu=9.000.ckpt, which the run had kept"):
        keep = fit(tmp_path / "new", [9.0, 2.0, 1.0, 1.5], resume=tmp_path / "old" / "last.ckpt")
    assert [epoch_of(path) for path in keep.best_k_models] == [3]
    assert {name: (tmp_path / "new" / name).read_bytes() for name in other} == other
