import json

import numpy as np
import pytest
import torch

from lit_seq2seq.features import Feature, Image, MultiSource, Processor, Tokenizer
from lit_seq2seq.types import Padded, UserError


def characters(text):
    tokenizer = Tokenizer("char")
    tokenizer.train([text])
    return tokenizer


def separate():
    return Processor(characters("abc: "), characters("xyz"), source_prefix="a: ")


def shared():
    tokenizer = characters("abc")
    return Processor(tokenizer, tokenizer)


@pytest.mark.parametrize("make", [separate, shared])
def test_folder_and_mapping_give_the_same_processor(make, tmp_path):
    processor = make()
    processor.save(tmp_path / "model")
    plain = json.loads(json.dumps(processor.to_dict()))
    for copy in (Processor.load(tmp_path / "model"), Processor.from_dict(plain)):
        assert copy.to_dict() == processor.to_dict()
        assert copy.shared == processor.shared
        assert torch.equal(copy.source(["ab", "c"]).values, processor.source(["ab", "c"]).values)


def test_mapping_goes_into_a_checkpoint(tmp_path):
    torch.save(separate().to_dict(), tmp_path / "x.ckpt")
    assert torch.load(tmp_path / "x.ckpt", weights_only=True) == separate().to_dict()


def test_file_names(tmp_path):
    shared().save(tmp_path / "one")
    separate().save(tmp_path / "two")
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        "processor.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        "processor.json",
        "source_tokenizer.json",
        "target_tokenizer.json",
    }
    assert Tokenizer.load(tmp_path / "two" / "target_tokenizer.json").encode_batch(["xy"]) == [[4, 5]]


def test_source_puts_the_prefix_and_cuts():
    processor = separate()
    assert processor.source_feature.decode(processor.source(["b"]).values[0].tolist()) == "a: b"
    padded = processor.source(["b", ""], max_length=2)
    assert padded.lengths.tolist() == [2, 2]
    assert (padded.values[:, -1] == processor.source_feature.specials.eos).all()


def test_a_missing_or_damaged_folder_is_explained(tmp_path):
    with pytest.raises(UserError, match=r"expected the file .*processor.json, but there is none"):
        Processor.load(tmp_path)
    separate().save(tmp_path)
    (tmp_path / "source_tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"source_tokenizer.json is damaged .*: copy or save the model again"):
        Processor.load(tmp_path)
    (tmp_path / "processor.json").write_text("{}")
    with pytest.raises(UserError, match=r"the processor in .* is damaged"):
        Processor.load(tmp_path)


def test_a_prefix_needs_texts():
    with pytest.raises(UserError, match="expected no source_prefix with Image, which reads no text"):
        Processor(Image(size=8), characters("ab"), source_prefix="a: ")


class Lengths(Feature):
    """A feature of early days: its batches are tensors."""

    size = 9

    def __init__(self):
        self.config = {}

    def encode(self, raw, training=False):
        return [np.array([len(word) for word in text.split()], np.int32) for text in raw]

    def nothing(self):
        return np.zeros(1, np.int32)

    def collate(self, arrays):
        rows = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(array).long() for array in arrays], batch_first=True)
        return Padded(rows, torch.tensor([len(array) for array in arrays]))


class Flat(Lengths):
    """Has forgotten that inputs come in lists."""

    def encode(self, raw, training=False):
        return [array for text in raw for array in super(Flat, self).encode(text.split())]


def test_every_input_has_an_array():
    processor = Processor(Flat(), characters("ab"))
    with pytest.raises(UserError, match="encode of the feature made 3 arrays of 2 inputs: let it make one of each"):
        processor.source(["a bb", "ccc"])


class Plain(Lengths):
    def collate(self, arrays):
        return Feature.collate(self, arrays)


@pytest.mark.parametrize("feature", [Lengths(), Plain()])
def test_batches_of_arrays_and_of_tensors_become_the_same_tensors(feature):
    processor = Processor(feature, characters("ab"))
    expected = Padded(torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1]))
    found = processor.source(["a bb", "ccc"])
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.lengths, expected.lengths)
    several = Processor(MultiSource({"one": feature, "other": Plain()}), characters("ab"))
    parts = several.source([{"one": "a bb", "other": "a bb"}]).parts
    assert torch.equal(parts["one"].values, parts["other"].values)
