from functools import partial

import pytest
import torch
from torch import Tensor

from lit_seq2seq.nn import DenseBridge, DotAttention, GeneralAttention, InputFeedingDecoder, TextEncoder
from lit_seq2seq.nn.cells import CellName
from lit_seq2seq.nn.decoders import feeding
from lit_seq2seq.nn.decoders.base import AttentionFactory, Combine, Decoder, DecoderOutput
from lit_seq2seq.nn.kernels.feeding import FeedingInputs, run_feeding_loop
from tests.nn.cases import SOURCE, SOURCE_SIZE, TARGET_SIZE, assert_close, disturb
from tests.tiny import needs_bfloat16

TOKENS = torch.tensor([[2, 4, 6, 7], [2, 7, 5, 4], [2, 5, 5, 5], [2, 6, 4, 3]])


def both(
    decoder: InputFeedingDecoder, encoder: TextEncoder, reach: Tensor | None = None
) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Outputs, and gradients of everything, of the loop with a backward pass of its own and of the plain one."""
    parameters = [*encoder.parameters(), *decoder.parameters()]
    found = []
    for run in (InputFeedingDecoder.forward, Decoder.forward):
        torch.manual_seed(3)
        state = decoder.start(encoder(SOURCE))
        output: DecoderOutput = run(decoder, TOKENS, state if reach is None else state.narrowed(reach))
        outputs = [one for one in output if one is not None]
        torch.manual_seed(4)
        loss = sum(((one.float() * torch.randn(one.shape)).sum() for one in outputs), torch.zeros(()))
        found.append((outputs, list(torch.autograd.grad(loss, parameters, allow_unused=True))))
    return found


@pytest.mark.parametrize("combine", ["tanh", "deep"])
@pytest.mark.parametrize("attention", [DotAttention, partial(DotAttention, scaled=True), GeneralAttention])
@pytest.mark.parametrize(("memory_size", "reach"), [(6, None), (8, None), (6, torch.tensor([1, 2, 2, 4]))])
def test_the_loop_has_the_outputs_and_gradients_of_the_plain_one(
    combine: Combine,
    attention: AttentionFactory,
    memory_size: int,
    reach: Tensor | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = disturb(TextEncoder(SOURCE_SIZE, embedding_dim=5, hidden_size=memory_size))
    make = partial(InputFeedingDecoder, embedding_dim=5, hidden_size=6, bridge=DenseBridge)
    decoder = disturb(make(TARGET_SIZE, encoder.shape, combine=combine, attention=attention))
    used = []

    def note(inputs: FeedingInputs) -> tuple[Tensor, ...]:
        used.append(inputs)
        return run_feeding_loop(inputs)

    monkeypatch.setattr(feeding, "run_feeding_loop", note)
    (outputs, gradients), (plain, expected) = both(decoder, encoder, reach)
    assert len(used) == 1
    assert_close(outputs, plain)
    assert_close(gradients, expected, rtol=1e-4, atol=1e-4)


def test_dropout_drops_features_that_are_fed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = disturb(TextEncoder(SOURCE_SIZE, embedding_dim=5, hidden_size=6))
    decoder = disturb(InputFeedingDecoder(TARGET_SIZE, encoder.shape, embedding_dim=5, hidden_size=6, dropout=0.5))
    mask = torch.randint(2, (4, 4, 6)) * 2.0  # (T, B, F)
    drawn = iter([*mask.unbind(), mask])
    monkeypatch.setattr(decoder, "embed", decoder.embedding)
    monkeypatch.setattr(feeding, "dropout_mask", lambda *_: mask)
    monkeypatch.setattr(decoder, "drop", lambda features: features * next(drawn))
    (outputs, gradients), (plain, expected) = both(decoder, encoder)
    assert_close(outputs, plain)
    assert_close(gradients, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropped", [False, True])
def test_gradients_in_double_precision(dropped: bool) -> None:
    steps, batch, places, size, features, memory, double = 3, 2, 4, 3, 2, 5, torch.float64

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=double, requires_grad=True)

    mask = torch.tensor([[[True, True, True, False], [True, False, False, False]]])
    given = FeedingInputs(
        draw(steps, batch, 4 * size),
        draw(4 * size, features + size),
        draw(batch, features),
        draw(batch, size),
        draw(batch, size),
        draw(batch, places, size),
        draw(batch, places, memory),
        mask,
        draw(steps, batch, features),
        draw(features, size + memory),
        torch.randint(2, (steps, batch, features)).to(double) if dropped else None,
    )
    assert torch.autograd.gradcheck(lambda *inputs: run_feeding_loop(FeedingInputs(*inputs)), tuple(given))


@needs_bfloat16
def test_bfloat16_comes_close() -> None:
    encoder = disturb(TextEncoder(SOURCE_SIZE, embedding_dim=5, hidden_size=6))
    decoder = disturb(InputFeedingDecoder(TARGET_SIZE, encoder.shape, embedding_dim=5, hidden_size=6))
    exact = decoder(TOKENS, decoder.start(encoder(SOURCE))).features
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = decoder(TOKENS, decoder.start(encoder(SOURCE))).features
    assert features.dtype == torch.bfloat16
    assert (features - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_an_encoder_in_chunks_below_changes_nothing(cell: CellName) -> None:
    make = partial(TextEncoder, SOURCE_SIZE, embedding_dim=5, hidden_size=6, num_layers=2, cell=cell)
    whole = disturb(make())
    chunked = make(chunk_size=2)
    chunked.load_state_dict(whole.state_dict())
    decoder = disturb(InputFeedingDecoder(TARGET_SIZE, whole.shape, embedding_dim=5, hidden_size=6, bridge=DenseBridge))
    (outputs, gradients), _ = both(decoder, chunked)
    (expected, wanted), (_, plain) = both(decoder, whole)
    assert_close(outputs, expected)
    assert_close(gradients, wanted, rtol=1e-4, atol=1e-4)
    assert_close(gradients, plain, rtol=1e-4, atol=1e-4)
