"""An ensemble is the average of its networks, whatever they are and however it is asked."""

import pytest
import torch

from lit_seq2seq.nn import EncoderDecoder, Ensemble
from lit_seq2seq.search import GenerationConfig, search
from lit_seq2seq.types import Padded, SpecialIds
from tests.nn.cases import DECODERS, ENCODERS, SOURCE, SOURCE_SIZE, TARGET, assert_close, disturb, network, row

MEMBERS = ["parallel first additive", "feeding location", "conditional additive coverage", "parallel no attention"]


@pytest.fixture
def ensemble() -> Ensemble:
    return Ensemble([network(name) for name in MEMBERS]).eval()


@torch.no_grad()
def step_log_probs(model: Ensemble, source: Padded, tokens: torch.Tensor) -> torch.Tensor:
    state, found = model.start(model.encode(source)), []
    for column in tokens.unbind(dim=1):
        output = model.step(column, state)
        state = output.state
        found.append(output.log_probs)
    return torch.stack(found, dim=1)


@torch.no_grad()
def test_probabilities_are_averaged(ensemble: Ensemble) -> None:
    parts = [member(SOURCE, TARGET).softmax(dim=-1) for member in ensemble.networks]
    assert_close(ensemble(SOURCE, TARGET).exp(), torch.stack(parts).mean(dim=0))


@torch.no_grad()
def test_stepping_equals_the_parallel_pass(ensemble: Ensemble) -> None:
    tokens = ensemble.networks[0].shift(TARGET)
    stepped, whole = step_log_probs(ensemble, SOURCE, tokens), ensemble(SOURCE, TARGET)
    assert_close(stepped[TARGET.mask], whole[TARGET.mask])
    assert_close(-ensemble.score(SOURCE, TARGET).sum(), ensemble.nll(SOURCE, TARGET))


@torch.no_grad()
def test_batch_mates_and_padding_change_nothing(ensemble: Ensemble) -> None:
    whole = ensemble.score(SOURCE, TARGET)
    for index in range(len(SOURCE.lengths)):
        alone = ensemble.score(row(SOURCE, index), row(TARGET, index))
        assert_close(whole[index, : alone.shape[1]], alone[0])


@torch.no_grad()
def test_one_network_alone_is_itself() -> None:
    single = network("parallel first additive")
    ensemble = Ensemble([single])
    assert_close(ensemble.score(SOURCE, TARGET), single.score(SOURCE, TARGET))
    output = ensemble.step(torch.full((4,), 2), ensemble.start(ensemble.encode(SOURCE)))
    expected = single.step(torch.full((4,), 2), single.start(single.encode(SOURCE)))
    assert output.attention is not None
    assert_close(output.attention, expected.attention)


@torch.no_grad()
def test_search_finds_what_exhaustive_scoring_finds() -> None:
    """With as many beams as there are outputs of at most three symbols, the best of all must be found."""
    sizes = (SOURCE_SIZE, 5)
    members = [disturb(EncoderDecoder(*sizes, ENCODERS["bidirectional gru"], DECODERS[name])) for name in MEMBERS[:3]]
    model = Ensemble(members).eval()
    config = GenerationConfig(num_beams=25, max_new_tokens=3, length_normalization="none")
    encoded = model.encode(SOURCE)
    found = search(model.step, model.start(encoded), batch_size=4, specials=SpecialIds(), config=config)
    symbols = [1, 3, 4]
    outputs = [[3]] + [[a, 3] for a in (1, 4)] + [[a, b, c] for a in (1, 4) for b in (1, 4) for c in symbols]
    for index, hypotheses in enumerate(found):
        scores = []
        for output in outputs:
            target = Padded(torch.tensor([output]), torch.tensor([len(output)]))
            scores.append(model.score(row(SOURCE, index), target).sum().item())
        best = outputs[max(range(len(outputs)), key=scores.__getitem__)]
        assert hypotheses[0].tokens.tolist() == [symbol for symbol in best if symbol != 3]
        assert hypotheses[0].log_prob == pytest.approx(max(scores), abs=1e-4)


def test_networks_of_different_vocabularies_are_refused() -> None:
    other = EncoderDecoder(SOURCE_SIZE, 6, ENCODERS["bidirectional gru"], DECODERS["parallel general"])
    with pytest.raises(ValueError, match=r"expected networks of one target vocabulary, but .* are 8, 6"):
        Ensemble([network("parallel general"), other])
    with pytest.raises(ValueError, match="are none"):
        Ensemble([])
