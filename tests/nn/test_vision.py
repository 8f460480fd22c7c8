"""Image models of transformers as encoders, with tiny random ones in a local folder."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from lit_seq2seq.nn import VisionBackbone
from lit_seq2seq.types import UserError
from tests.nn.cases import IMAGES, assert_close, tensors

if importlib.util.find_spec("transformers") is None:
    pytest.skip('needs transformers: pip install -e ".[vision]"', allow_module_level=True)

KINDS = ("vit", "resnet", "convnext")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from transformers import (
        BertConfig,
        BertModel,
        ConvNextConfig,
        ConvNextModel,
        ResNetConfig,
        ResNetModel,
        ViTConfig,
        ViTModel,
    )

    root = tmp_path_factory.mktemp("backbones")
    small = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    models = {
        "vit": ViTModel(ViTConfig(**small, image_size=16, patch_size=4)),
        "resnet": ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")),
        "convnext": ConvNextModel(ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2)),
        "bert": BertModel(BertConfig(**small, vocab_size=10)),
    }
    for kind, model in models.items():
        model.save_pretrained(root / kind)
    return {kind: root / kind for kind in models}


@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_gives_a_grid_that_batch_mates_do_not_change(kind: str, folders: dict[str, Path]) -> None:
    encoder = VisionBackbone(3, str(folders[kind]), hidden_size=10).eval()
    encoded = encoder(IMAGES)
    side = {"vit": 4, "resnet": 2, "convnext": 2}[kind]
    assert encoded.memory.values.shape == (3, side * side, encoder.shape.memory_size)
    assert encoded.final.h.shape == (3, 1, 10)
    for index in range(3):
        alone = encoder(IMAGES.select(torch.tensor([index])))
        assert_close(tensors(alone), tensors(encoded.select(torch.tensor([index]))))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_frozen_unless_told_otherwise(kind: str, folders: dict[str, Path]) -> None:
    frozen = VisionBackbone(3, str(folders[kind]), hidden_size=10).train()
    before = {name: tensor.clone() for name, tensor in frozen.backbone.state_dict().items()}
    frozen(IMAGES).memory.values.square().sum().backward()
    assert [name for name, p in frozen.named_parameters() if p.grad is not None] == ["project.weight", "project.bias"]
    for name, tensor in frozen.backbone.state_dict().items():  # running statistics, too
        assert_close(tensor, before[name], rtol=0, atol=0)
    last = VisionBackbone(3, str(folders[kind]), hidden_size=10, trainable_blocks=1).train()
    free = VisionBackbone(3, str(folders[kind]), hidden_size=10, trainable_blocks=-1).train()
    counts = [sum(p.requires_grad for p in encoder.backbone.parameters()) for encoder in (frozen, last, free)]
    assert counts[0] == 0 < counts[1] < counts[2] == len(list(free.backbone.parameters()))
    last(IMAGES).memory.values.square().sum().backward()
    learning = [p for p in last.backbone.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in learning)


def test_pretrained_weights_are_those_of_the_folder(folders: dict[str, Path]) -> None:
    from transformers import ViTModel

    expected = ViTModel.from_pretrained(folders["vit"]).eval()
    pixels = IMAGES.values.permute(0, 3, 1, 2)
    states = VisionBackbone(3, str(folders["vit"]), hidden_size=10).eval().backbone(pixel_values=pixels)
    assert_close(states.last_hidden_state, expected(pixel_values=pixels).last_hidden_state)
    random = VisionBackbone(3, str(folders["vit"]), hidden_size=10, pretrained=False).eval()
    again = VisionBackbone(3, str(folders["vit"]), hidden_size=10).eval()
    random.load_state_dict(again.state_dict())
    assert_close(tensors(random(IMAGES)), tensors(again(IMAGES)), rtol=0, atol=0)


@pytest.mark.parametrize("pretrained", [True, False])
def test_code_that_comes_with_a_model_is_never_run(
    pretrained: bool, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Config: ...\nclass Model: ...\n")
    own = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks where it is not told
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": own}))
    with pytest.raises(UserError, match=r"the image model '.*' cannot be loaded"):
        VisionBackbone(3, str(tmp_path), pretrained=pretrained)
    known = json.loads((folders["vit"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(known | {"auto_map": own}))
    VisionBackbone(3, str(tmp_path), pretrained=False)  # by the class that transformers has
    assert not ran.exists()


def test_mistakes_are_explained(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"the image model '.*none' cannot be loaded"):
        VisionBackbone(3, str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"expected a model of images, but '.*bert' reads input_ids"):
        VisionBackbone(3, str(folders["bert"]))
    with pytest.raises(UserError, match="trainable_blocks must be at most 3, as many as there are, got 9"):
        VisionBackbone(3, str(folders["vit"]), trainable_blocks=9)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r'VisionBackbone needs transformers.*: .* pip install -e "\.\[vision\]"'):
        VisionBackbone(3, "any")
