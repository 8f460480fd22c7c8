"""A `tokenizer.json` as T5, GPT-2, Qwen and BERT have it, in which the special symbols are others than ours."""

from functools import partial
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from lit_seq2seq import LitSeq2Seq
from lit_seq2seq.features import Processor, Tokenizer
from lit_seq2seq.nn import ParallelDecoder, TextEncoder
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.shortlist import Scored
from lit_seq2seq.types import Padded, SpecialIds, UserError
from tests.nn.cases import cross_entropy
from tests.tiny import make_model, pairs

TEXTS = pairs(40)["source"] + pairs(40)["target"]
END = "<|endoftext|>"


def t5() -> Backend:
    backend = Backend(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    specials = ["<pad>", "</s>", "<unk>", "<extra_id_0>"]
    backend.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=90, unk_token="<unk>", special_tokens=specials)
    )
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return backend


def bytes_of(specials: list[str]) -> Backend:
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet))
    backend.add_special_tokens(specials)
    return backend


def bert() -> Backend:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=specials))
    return backend


KINDS = {
    "T5": (t5, {"bos_token": "<pad>"}, ("<pad>", "<pad>", "</s>", "<unk>")),
    "GPT-2": (lambda: bytes_of([END]), {f"{r}_token": END for r in ("pad", "bos", "eos", "unk")}, (END,) * 4),
    "GPT-2, no unknown": (lambda: bytes_of([END]), {"pad_token": END, "bos_token": END}, (END,) * 4),
    "Qwen": (
        lambda: bytes_of([END, "<|im_start|>", "<|im_end|>"]),
        {"pad_token": END, "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
        (END, "<|im_start|>", "<|im_end|>", END),
    ),
    "BERT": (bert, {}, ("[PAD]", "[CLS]", "[SEP]", "[UNK]")),
    "BERT, other roles": (bert, {"bos_token": "[MASK]"}, ("[PAD]", "[MASK]", "[SEP]", "[UNK]")),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Tokenizer, tuple[str, ...]]:
    make, tokens, expected = KINDS[request.param]
    make().save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(file=str(tmp_path / "tokenizer.json"), **tokens), expected


def test_each_role_is_played_by_the_symbol_that_is_named(kind: tuple[Tokenizer, tuple[str, ...]]) -> None:
    tokenizer, names = kind
    again = Tokenizer.from_dict(tokenizer.to_dict())
    for one in (tokenizer, again):
        ids = one.specials
        assert tuple(map(str, one.tokens([ids.pad, ids.bos, ids.eos, ids.unk]))) == names
        for text in TEXTS:
            (array,) = one.encode([text])
            assert array[-1] == ids.eos
            assert not {ids.eos, ids.pad, ids.bos} & set(array[:-1].tolist())
            assert one.decode(array.tolist()) == text
        spoken = one.encode_batch([f"eins {names[2]} zwei"])[0]
        assert ids.eos not in spoken or ids.eos == ids.unk


def test_a_model_learns_where_outputs_end(kind: tuple[Tokenizer, tuple[str, ...]], tmp_path: Path) -> None:
    """Whatever symbols share a role, training, search, folders and the shortlist tell them apart."""
    tokenizer, _ = kind
    wide = {"embedding_dim": 32, "hidden_size": 48}
    model = make_model(encoder=partial(TextEncoder, **wide), decoder=partial(ParallelDecoder, **wide))
    model.attach(Processor(tokenizer, tokenizer))
    sources, targets = ["eins", "zwei"], ["one", "two two"]
    source, target = model.processor.source(sources), tokenizer.collate(tokenizer.encode(targets)).to("cpu")
    optimizer = torch.optim.Adam(model.net.parameters(), lr=0.02)
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        (cross_entropy(model.net, source, target)[0] / target.total).backward()
        optimizer.step()
    model.eval()
    model.save_pretrained(tmp_path / "model")
    loaded = LitSeq2Seq.from_pretrained(tmp_path / "model")
    for options in ({}, {"num_beams": 3}, {"no_repeat_ngram_size": 9}, {"do_sample": True, "top_k": 1}):
        for one in (model, loaded):
            found = one.generate(source, GenerationConfig(max_new_tokens=30, **options))
            assert [tokenizer.decode(best.tokens.tolist()) for best, *_ in found] == targets
    assert loaded.processor.target.specials == tokenizer.specials
    read = loaded.processor.source_feature.encode(sources)
    assert [row.tolist() for row in read] == [row.tolist() for row in tokenizer.encode(sources)]


@pytest.mark.parametrize("roles", [(3, 3, 3, 3), (0, 0, 2, 3), (3, 1, 2, 3), (0, 1, 0, 3), (2, 1, 2, 3), (0, 1, 2, 3)])
def test_a_shortlist_counts_a_symbol_in_several_roles_once(roles: tuple[int, ...]) -> None:
    others = [4, 6]
    size = 300
    scores = torch.randn(size, generator=torch.Generator().manual_seed(0)).numpy()
    scored = Scored.of(Padded(torch.tensor([[*roles, *others]]).numpy(), torch.tensor([6]).numpy()), size)
    own = scores[scored.symbols][scored.columns[0]] + scored.shares[0]
    listed = torch.from_numpy(own[:6]).exp()
    for index in {*roles, *others}:
        places = [place for place, one in enumerate([*roles, *others]) if one == index]
        assert listed[places].sum().item() == pytest.approx(float(torch.tensor(scores[index]).exp()), rel=1e-5)
    assert listed[3] > 0  # EOS can be produced
    assert (listed[1] > 0) == (roles[1] not in (roles[0], *roles[2:]))


@pytest.mark.parametrize(
    ("make", "tokens", "message"),
    [
        (
            t5,
            {},
            r"expected a bos symbol in .*, <bos> or <s> .* name one by bos_token; its special symbols are <pad>, </s>",
        ),
        (lambda: bytes_of([END]), {}, "name one by pad_token; its special symbols are <|endoftext|>"),
        (bert, {"eos_token": "[END]"}, r"expected a eos symbol in .*, \[END\], but it has none: name one by eos_token"),
        (bert, {"unk_token": "what"}, "expected a unk symbol in .*, what, but it has none"),
        (t5, {"bos_token": "<pad>", "dropout": 0.1}, "dropout of the tokenizer needs byte-pair encoding, which"),
    ],
)
def test_what_is_missing_is_named_with_what_there_is(make, tokens: dict, message: str, tmp_path: Path) -> None:
    make().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=message.replace("<|", r"<\|").replace("|>", r"\|>")) as caught:
        Tokenizer(file=str(tmp_path / "tokenizer.json"), **tokens)
    assert "\n" not in str(caught.value)


def test_unknown_words_may_not_end_texts(tmp_path: Path) -> None:
    Backend(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3}, "</s>")).save(str(tmp_path / "t.json"))
    with pytest.raises(UserError, match=r"expected another unk_token in .* than its eos_token: texts would end"):
        Tokenizer(file=str(tmp_path / "t.json"), unk_token="</s>")
    assert Tokenizer(file=str(tmp_path / "t.json"), unk_token="<pad>").specials == SpecialIds(0, 0, 1, 2)
