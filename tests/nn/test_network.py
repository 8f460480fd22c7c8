import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from lit_seq2seq.nn import (
    Decoder,
    DecoderShape,
    Encoder,
    EncoderDecoder,
    EncoderShape,
    OutputLayer,
    ParallelDecoder,
    TextEncoder,
    ZeroBridge,
)
from lit_seq2seq.types import Encoded, Padded, SpecialIds
from tests.nn.cases import (
    DECODERS,
    ENCODERS,
    MAIN,
    NETWORKS,
    SIZES,
    SOURCE,
    SOURCE_SIZE,
    TARGET,
    TARGET_SIZE,
    assert_close,
    cross_entropy,
    disturb,
    gradient_of,
    network,
    step_log_probs,
)
from tests.tiny import needs_bfloat16

Tiny = partial(EncoderDecoder, SOURCE_SIZE, TARGET_SIZE, partial(TextEncoder, **SIZES))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = network(name)
    loss, _ = cross_entropy(model.train(), SOURCE, TARGET, 0.1)
    loss.backward()
    unused = {key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    if name == "residual norm encoder, no attention":  # the last norm is of the memory, which nobody looks at
        unused -= {"encoder.stack.norms.2.weight", "encoder.stack.norms.2.bias"}
    assert not unused


@needs_bfloat16
@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_comes_close_to_float32(name: str) -> None:
    model = network(name).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.manual_seed(1)  # zoneout draws
    expected, _ = cross_entropy(model, SOURCE, TARGET)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = cross_entropy(model, SOURCE, TARGET)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    near, exact = (gradient_of(value, parameters) for value in (loss, expected))
    assert torch.cosine_similarity(near, exact, dim=0) > 0.98


@needs_bfloat16
@pytest.mark.parametrize("name", MAIN)
@torch.no_grad()
def test_stepping_works_in_bfloat16(name: str) -> None:
    model = network(name)
    tokens = model.shift(TARGET)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_probs = step_log_probs(model, tokens, model.start(model.encode(SOURCE)))
    assert log_probs.dtype == torch.float32
    assert_close(log_probs, model(SOURCE, TARGET).log_softmax(dim=-1), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", MAIN)
@torch.no_grad()
def test_score_is_what_stepping_gives_and_what_the_loss_sums(name: str) -> None:
    model = network(name)
    scores = model.score(SOURCE, TARGET)
    log_probs = step_log_probs(model, model.shift(TARGET), model.start(model.encode(SOURCE)))
    chosen = log_probs.gather(-1, TARGET.values[..., None])[..., 0]
    assert_close(scores[TARGET.mask], chosen[TARGET.mask])
    assert (scores[~TARGET.mask] == 0).all()
    assert_close(-scores.sum(), cross_entropy(model, SOURCE, TARGET, 0.2)[1])


@pytest.mark.parametrize("name", MAIN)
@torch.no_grad()
def test_the_loss_ignores_padding(name: str) -> None:
    model = network(name)
    logits = model(SOURCE, TARGET)
    ignored = TARGET.values.masked_fill(~TARGET.mask, -100)
    expected = nn.functional.cross_entropy(
        logits.flatten(0, 1), ignored.flatten(), reduction="sum", label_smoothing=0.1
    )
    assert_close(cross_entropy(model, SOURCE, TARGET, 0.1)[0], expected)


@pytest.mark.parametrize("name", MAIN)
@torch.no_grad()
def test_probabilities_of_all_outputs_sum_to_one(name: str) -> None:
    """All outputs that end within three symbols, and all that go on after three, share the whole probability."""
    eos, longest = 3, 3
    decoder = DECODERS[name]
    model = disturb(EncoderDecoder(SOURCE_SIZE, 4, ENCODERS["bidirectional gru"], decoder)).eval()
    others = range(3)
    ended = [(*prefix, eos) for n in range(longest) for prefix in itertools.product(others, repeat=n)]
    outputs = ended + list(itertools.product(others, repeat=longest))
    assert len(outputs) == 1 + 3 + 9 + 27
    lengths = torch.tensor([len(output) for output in outputs])
    values = torch.tensor([output + (0,) * (longest - len(output)) for output in outputs])
    source = SOURCE.select(torch.tensor([0])).repeat(len(outputs))
    probabilities = model.score(source, Padded(values, lengths)).sum(dim=1).exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    assert (probabilities > 0).all()


@torch.no_grad()
def test_shift_puts_bos_first() -> None:
    model = Tiny(partial(ParallelDecoder, **SIZES), specials=SpecialIds(bos=7))
    shifted = model.shift(TARGET)
    assert (shifted[:, 0] == 7).all()
    assert_close(shifted[:, 1:], TARGET.values[:, :-1])


OVERFIT_SOURCE = Padded(
    torch.tensor([[4, 5, 6, 3], [6, 5, 4, 3], [7, 8, 3, 0], [8, 3, 0, 0]]), torch.tensor([4, 4, 3, 2])
)
OVERFIT_TARGET = Padded(
    torch.tensor([[5, 4, 7, 6, 3], [4, 4, 3, 0, 0], [7, 6, 5, 3, 0], [6, 3, 0, 0, 0]]), torch.tensor([5, 3, 4, 2])
)


@torch.no_grad()
def greedy(model: EncoderDecoder, source: Padded, steps: int) -> torch.Tensor:
    state = model.start(model.encode(source))
    tokens = torch.full((len(source.lengths),), model.specials.bos)
    outputs = []
    for _ in range(steps):
        output = model.step(tokens, state)
        tokens, state = output.log_probs.argmax(dim=-1), output.state
        outputs.append(tokens)
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("name", ["parallel no attention", "parallel first additive", *MAIN[-2:]])
def test_four_examples_can_be_learned_by_heart(name: str) -> None:
    wide = {"embedding_dim": 16, "hidden_size": 24}
    decoder: Callable[[int, EncoderShape], Decoder] = partial(DECODERS[name], **wide)
    model = EncoderDecoder(SOURCE_SIZE, TARGET_SIZE, partial(TextEncoder, **wide), decoder).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss, nll = cross_entropy(model, OVERFIT_SOURCE, OVERFIT_TARGET)
        loss.backward()
        optimizer.step()
    assert nll.item() / OVERFIT_TARGET.total.item() < 0.03
    outputs = greedy(model.eval(), OVERFIT_SOURCE, OVERFIT_TARGET.values.shape[1])
    assert_close(outputs[OVERFIT_TARGET.mask], OVERFIT_TARGET.values[OVERFIT_TARGET.mask])


def test_a_decoder_without_attention_learns_nothing_of_the_source_from_zeros() -> None:
    """The fixed-length vector is the only road from source to target: cut it, and sources cannot matter."""
    decoder = partial(ParallelDecoder, bridge=ZeroBridge, **SIZES)
    cut, summary = Tiny(decoder).eval(), Tiny(partial(decoder, use_summary=True)).eval()
    first, last = (SOURCE.select(torch.tensor([index])) for index in (0, 3))
    target = TARGET.select(torch.tensor([0]))
    assert_close(cut(first, target), cut(last, target))
    assert not torch.allclose(summary(first, target), summary(last, target))


def test_tying_the_target_shares_storage() -> None:
    model = Tiny(partial(ParallelDecoder, **SIZES), tie_embeddings="target")
    assert model.output.projection.weight is model.decoder.embedding.weight
    assert model.encoder.token_embedding is not None
    assert model.encoder.token_embedding.weight is not model.decoder.embedding.weight
    free = Tiny(partial(ParallelDecoder, **SIZES))
    assert free.output.projection.weight is not free.decoder.embedding.weight


@pytest.mark.parametrize("combine", ["concat", "tanh", "deep"])
def test_tying_all_shares_storage_and_trains(combine: str) -> None:
    decoder = partial(DECODERS["feeding general"], combine=combine)
    model = EncoderDecoder(9, 9, partial(TextEncoder, **SIZES), decoder, tie_embeddings="all")
    weight = model.decoder.embedding.weight
    assert model.encoder.token_embedding is not None
    assert model.encoder.token_embedding.weight is weight
    assert model.output.projection.weight is weight
    assert sum(parameter is weight for parameter in model.parameters()) == 1
    cross_entropy(model, SOURCE, TARGET)[0].backward()
    assert weight.grad is not None
    assert model(SOURCE, TARGET).shape == (*TARGET.values.shape, 9)


def test_tied_output_equals_the_product_with_the_embedding() -> None:
    embedding = nn.Embedding(7, 3)
    layer = OutputLayer(DecoderShape(3), 7, embedding)
    features = torch.randn(2, 3)
    assert_close(layer(features), features @ embedding.weight.T)
    assert isinstance(OutputLayer(DecoderShape(5), 7, embedding).bottleneck, nn.Linear)


def test_tying_all_needs_equal_shapes() -> None:
    message = r"tie_embeddings: all .* got \(9, 5\) and \(8, 5\): use a shared vocabulary and equal embedding_dim"
    with pytest.raises(ValueError, match=message):
        Tiny(partial(ParallelDecoder, **SIZES), tie_embeddings="all")


class Features(Encoder):
    """An encoder that reads vectors, not symbols."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.inner = TextEncoder(size, **SIZES)

    @property
    def shape(self) -> EncoderShape:
        return self.inner.shape

    def forward(self, source: Padded) -> Encoded:
        encoded: Encoded = self.inner(source)
        return encoded


def test_tying_all_needs_source_embeddings() -> None:
    with pytest.raises(ValueError, match=r"tie_embeddings: all .* got none and \(8, 5\)"):
        EncoderDecoder(SOURCE_SIZE, TARGET_SIZE, Features, partial(ParallelDecoder, **SIZES), tie_embeddings="all")


@torch.no_grad()
def test_an_untrained_model_is_near_uniform() -> None:
    model = EncoderDecoder(SOURCE_SIZE, 200, partial(TextEncoder, **SIZES), partial(DECODERS["feeding general"]))
    target = Padded(torch.randint(200, (4, 6)), TARGET.lengths)
    loss, _ = cross_entropy(model, SOURCE, target)
    assert loss.item() / TARGET.total.item() == pytest.approx(math.log(200), rel=0.05)
