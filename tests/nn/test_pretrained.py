"""Text and speech models of transformers as encoders, with tiny random ones in a local folder."""

import contextlib
import importlib.util
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn

from lit_seq2seq import LitSeq2Seq, Seq2SeqDataModule, pipeline
from lit_seq2seq.features import MultiSource, PretrainedTokenizer, Processor, Tokenizer, Waveform
from lit_seq2seq.nn import (
    DenseBridge,
    MultiSourceEncoder,
    ParallelDecoder,
    SpeechBackbone,
    TextBackbone,
    TextEncoder,
    VisionBackbone,
    ZeroBridge,
)
from lit_seq2seq.types import Padded, UserError
from tests.backbones import RECORDINGS, SMALL, TEXT, WORDS, write_backbone
from tests.nn.cases import assert_close, cross_entropy, tensors
from tests.tiny import make_data, make_model, make_trainer, pairs

if importlib.util.find_spec("transformers") is None:
    pytest.skip('needs transformers: pip install -e ".[vision]"', allow_module_level=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pretrained")
    return {name: write_backbone(name, root / name) for name in (*TEXT, *RECORDINGS)}


IDS = Padded(torch.tensor([[2, 4, 5, 6, 3], [2, 7, 3, 0, 0], [2, 4, 4, 3, 0]]), torch.tensor([5, 3, 4]))


def recordings() -> Padded:
    lengths = torch.tensor([160, 75, 120])
    values = torch.randn(3, 160, 1, generator=torch.Generator().manual_seed(0))
    return Padded(values * (torch.arange(160) < lengths[:, None])[..., None], lengths)


def make(name: str, folders: dict[str, Path], **options: object) -> tuple[nn.Module, Padded]:
    if name in TEXT:
        return TextBackbone(len(WORDS), str(folders[name]), hidden_size=6, **options).eval(), IDS
    return SpeechBackbone(1, str(folders[name]), hidden_size=6, **options).eval(), recordings()


@pytest.mark.parametrize("name", [*TEXT, *RECORDINGS])
def test_padding_and_batch_mates_change_nothing(name: str, folders: dict[str, Path]) -> None:
    encoder, source = make(name, folders)
    encoded = encoder(source)
    assert encoded.memory.values.shape[2] == encoder.shape.memory_size == 6
    assert encoded.final.h.shape == (3, 1, 6)
    for index, length in enumerate(source.lengths.tolist()):
        one = source.select(torch.tensor([index]))
        alone = encoder(Padded(one.values[:, :length], one.lengths))
        positions = int(alone.memory.lengths)
        assert positions == int(encoded.memory.lengths[index]) == alone.memory.values.shape[1]
        assert_close(alone.memory.values[0], encoded.memory.values[index, :positions])
        assert_close(alone.final.h[0], encoded.final.h[index])
        assert not encoded.memory.values[index, positions:].any()


def test_a_frozen_model_never_trains(folders: dict[str, Path]) -> None:
    encoder = TextBackbone(9, str(folders["bert"]), pretrained=False)
    assert encoder.training
    assert not encoder.backbone.training
    assert TextBackbone(9, str(folders["bert"]), pretrained=False, trainable_blocks=1).backbone.training


@pytest.mark.parametrize("name", ["bert", "hubert"])
def test_a_model_is_frozen_unless_told_otherwise(name: str, folders: dict[str, Path]) -> None:
    counts = []
    for blocks in (0, 1, -1):
        encoder, source = make(name, folders, trainable_blocks=blocks)
        encoder.train()(source).memory.values.square().sum().backward()
        assert encoder.backbone.training == (blocks != 0)
        counts.append(sum(p.grad is not None for p in encoder.backbone.parameters()))
        assert encoder.project.weight.grad is not None
    assert counts[0] == 0 < counts[1] < counts[2]


def fitted(folders: dict[str, Path], tmp_path: Path) -> tuple[LitSeq2Seq, Seq2SeqDataModule]:
    encoder = partial(TextBackbone, name=str(folders["bert"]), hidden_size=12)
    decoder = partial(ParallelDecoder, embedding_dim=8, hidden_size=12, bridge=ZeroBridge)
    model = make_model(encoder=encoder, decoder=decoder)
    data = Seq2SeqDataModule(
        Dataset.from_dict(pairs(40)),
        source_feature=PretrainedTokenizer(str(folders["bert"])),
        target_tokenizer=Tokenizer("word"),
        batch_size=8,
    )
    make_trainer(tmp_path).fit(model, datamodule=data)
    return model.eval(), data


def test_a_saved_model_needs_nothing_else(folders: dict[str, Path], tmp_path: Path) -> None:
    copied = {name: tmp_path / name for name in ("bert",)}
    shutil.copytree(folders["bert"], copied["bert"])
    model, data = fitted(copied, tmp_path)
    batch = next(iter(data.val_dataloader()))
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(copied["bert"])
    again = LitSeq2Seq.from_pretrained(tmp_path / "model")
    assert_close(again(batch.source, batch.target), model(batch.source, batch.target), rtol=0, atol=0)
    assert [*again.hparams["encoder"]["init_args"]] == ["name", "hidden_size", "config"]
    again.save_pretrained(tmp_path / "second")
    LitSeq2Seq.from_pretrained(tmp_path / "second")
    results = pipeline("translation", model=again)(["eins zwei", "drei"])
    assert len(results) == 2


def test_vision_models_are_saved_whole_too(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(**SMALL, image_size=8, patch_size=4)).save_pretrained(tmp_path / "vit")
    encoder = VisionBackbone(3, str(tmp_path / "vit"), hidden_size=6).eval()
    shutil.rmtree(tmp_path / "vit")
    again = VisionBackbone(3, str(tmp_path / "vit"), hidden_size=6, **encoder.resolved).eval()
    again.load_state_dict(encoder.state_dict())
    images = Padded(torch.rand(2, 8, 8, 3), torch.tensor([8, 8]))
    assert_close(tensors(again(images)), tensors(encoder(images)), rtol=0, atol=0)


def test_code_that_comes_with_a_tokenizer_is_never_run(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    shutil.copytree(folders["bert"], own)
    (own / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Mine: ...\n")
    settings = own / "tokenizer_config.json"
    mine = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Mine", "code.Mine"]}}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | mine))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks where it is not told
    with contextlib.suppress(UserError):
        PretrainedTokenizer(str(own))
    assert not (tmp_path / "ran").exists()


def test_the_tokenizer_is_that_of_transformers(folders: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    feature, expected = PretrainedTokenizer(str(folders["bert"])), AutoTokenizer.from_pretrained(folders["bert"])
    texts = ["eins zwei", "drei sechs vier", ""]
    padded = feature.collate(feature.encode(texts)).to("cpu")
    found = expected(texts, padding=True, return_tensors="pt")
    assert padded.values.tolist() == found["input_ids"].tolist()
    assert padded.lengths.tolist() == found["attention_mask"].sum(dim=1).tolist()
    assert feature.truncate(feature.encode(texts)[1], 3).tolist() == [2, 6, 3]
    assert feature.encode(["eins \ud83d"])[0].tolist() == [2, 4, 1, 3]  # half a character is an unknown one
    again = PretrainedTokenizer.from_dict(feature.to_dict())
    assert again.identity() == feature.identity()
    assert again.symbols == WORDS


def test_recordings_are_read_as_they_are(folders: dict[str, Path]) -> None:
    feature = Waveform(sampling_rate=8000)
    samples = np.random.default_rng(0).normal(3, 2, size=200).astype(np.float32)
    (array,) = feature.encode([samples])
    assert array.shape == (200, 1)
    assert (array.mean(), array.std()) == pytest.approx((0, 1), abs=1e-4)
    assert feature.measure([samples, {"array": samples, "sampling_rate": 4000}]) == [200, 400]
    assert Waveform.from_dict(feature.to_dict()).identity() == feature.identity()
    model = make_model(
        encoder=partial(SpeechBackbone, name=str(folders["hubert"]), hidden_size=12, trainable_blocks=-1),
        decoder=partial(ParallelDecoder, embedding_dim=8, hidden_size=12, bridge=DenseBridge),
    )
    target = Tokenizer("word")
    target.train(["one two"])
    model.attach(Processor(feature, target))
    loss, _ = cross_entropy(
        model.net, model.processor.source([samples, samples[:90]]), target.collate(target.encode(["one"] * 2)).to("cpu")
    )
    loss.backward()
    assert model.net.encoder.backbone.encoder.layers[0].attention.k_proj.weight.grad is not None


def test_mistakes_are_explained(folders: dict[str, Path], tmp_path: Path) -> None:
    bert = str(folders["bert"])
    with pytest.raises(UserError, match=r"the text model '.*none' cannot be loaded"):
        TextBackbone(9, str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"the tokenizer of '.*none' cannot be loaded"):
        PretrainedTokenizer(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"expected a model of texts, but '.*hubert' reads input_values"):
        TextBackbone(9, str(folders["hubert"]))
    with pytest.raises(
        UserError, match=r"knows 9 symbols, but the source has 10: set data.source_feature to lit_seq2seq"
    ):
        TextBackbone(10, bert)
    with pytest.raises(UserError, match="SpeechBackbone reads samples, not vectors of 80: set source_feature to Wave"):
        SpeechBackbone(80, str(folders["hubert"]))
    with pytest.raises(
        UserError, match=r"reads 20 symbols at most, but a source has 30: set data\.limits\.max_source_length"
    ):
        TextBackbone(9, bert)(Padded(torch.full((1, 30), 4), torch.tensor([30])))
    with pytest.raises(UserError, match="a recording of 7 samples is too short for the speech model: it needs 20"):
        SpeechBackbone(1, str(folders["hubert"]))(Padded(torch.zeros(1, 7, 1), torch.tensor([7])))


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_recordings_shorter_than_the_masks_of_training_are_learned_from(kind: str, norm: str) -> None:
    blocks = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = {"model_type": kind, "conv_dim": [8] * 7, "feat_extract_norm": norm, **blocks}
    encoder = SpeechBackbone(1, "tiny", hidden_size=6, config=config, trainable_blocks=-1).train()
    for samples, frames in ((1600, 4), (16000, 49)):  # where a mask has 10
        memory = encoder(Padded(torch.randn(2, samples, 1), torch.tensor([samples, 1600]))).memory
        assert memory.lengths.tolist() == [frames, 4]
        assert memory.values.isfinite().all()


LEADING_ELSEWHERE = {
    "_attn_implementation": "kernels-community/flash-attn2",
    "attn_implementation": "attacker/evil",
    "_experts_implementation": "attacker/evil",
    "_name_or_path": "attacker/evil",
    "auto_map": {"AutoModel": "attacker/evil--modeling.Model"},
    "trust_remote_code": True,
    "quantization_config": {"quant_method": "fp_quant", "kernel": "attacker/evil"},
    "use_kernels": True,
}


@pytest.mark.parametrize("name", LEADING_ELSEWHERE)
def test_a_saved_configuration_leads_nowhere_else(name: str) -> None:
    config = {**SMALL, "model_type": "bert", "vocab_size": 10, name: LEADING_ELSEWHERE[name]}
    encoder = TextBackbone(10, "attacker/evil", hidden_size=6, config=config)
    assert encoder.backbone.config._attn_implementation in ("eager", "sdpa")
    assert "evil" not in str(encoder.resolved)


def test_the_configuration_of_each_of_several_sources_is_saved(tmp_path) -> None:
    folder = str(write_backbone("bert", tmp_path / "bert"))
    encoders = {
        "text": partial(TextBackbone, name=folder),
        "more": partial(TextEncoder, embedding_dim=4, hidden_size=6),
    }
    features = {"text": PretrainedTokenizer(folder), "more": PretrainedTokenizer(folder)}
    model = make_model(encoder=partial(MultiSourceEncoder, encoders=encoders, hidden_size=12))
    model.attach(Processor(MultiSource(features), make_data().processor.target))
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(folder)
    loaded = LitSeq2Seq.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(dict(loaded.state_dict()), dict(model.state_dict()))
