"""Encoders whose vectors come from a pretrained model of the package `transformers`: of texts, of recordings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.encoders.base import Encoder, EncoderShape
from lit_seq2seq.nn.kernels.products import Linear
from lit_seq2seq.nn.ops import dropout, masked_mean
from lit_seq2seq.nn.parts import longest_list
from lit_seq2seq.types import CellState, Encoded, Padded, UserError, install


class PretrainedEncoder(Encoder):
    """Base of encoders with a model of `transformers`, without its head, and a linear layer that projects its vectors.

    A saved model holds the configuration and the weights of both, and needs nothing else to be loaded. Code that comes
    with a model is never run: only architectures that `transformers` itself has can be loaded.

    Args:
        source_size: number of source symbols, or of values at each position.
        name: hub id or folder.
        hidden_size: size of the memory vectors and of the final state.
        trainable_blocks: so many of the last blocks learn; 0 freezes the whole, -1 frees it.
        dropout: probability of dropping units of the memory vectors.
        pretrained: start from the weights of `name`; otherwise from random ones.
        config: configuration of the model, as a saved one brings it; that of `name` if `None`.

    Raises:
        UserError: transformers is not installed, there is no such model, or it reads something else.
    """

    resolves: ClassVar[tuple[str, ...]] = ("config",)
    reads: ClassVar[str]
    """Name of the model's input."""
    of: ClassVar[str]
    """What it is a model of."""
    extra: ClassVar[int] = 0
    """Number of values beside the vectors of the model."""

    def __init__(
        self,
        source_size: int,
        name: str,
        hidden_size: int = 512,
        trainable_blocks: int = 0,
        *,
        dropout: float = 0.0,
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = self._load(name, pretrained and config is None, config)
        freeze(self.backbone, trainable_blocks)
        self.project = Linear(_width(self.backbone.config) + self.extra, hidden_size)
        self.dropout = dropout
        self.shape = EncoderShape(hidden_size, 1, hidden_size)
        self.check(source_size, name)
        self.train()

    def check(self, source_size: int, name: str) -> None:
        """Refuse a source that the model does not read."""

    @property
    def resolved(self) -> dict[str, Any]:
        """The configuration of the model, so that loading does not look for `name`."""
        return {"config": json.loads(self._config.to_json_string()) | {"model_type": self._config.model_type}}

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; a frozen model stays in evaluation mode."""
        super().train(mode)
        if not self._learns:
            self.backbone.eval()
        return self

    @property
    def _learns(self) -> bool:
        return any(parameter.requires_grad for parameter in self.backbone.parameters())

    def states(self, **inputs: Tensor) -> Tensor:
        """Run the model, without keeping what gradients need where it is frozen: its last states."""
        with torch.set_grad_enabled(self._learns and torch.is_grad_enabled()):
            states: Tensor = self.backbone(**inputs).last_hidden_state
        return states

    def sequence(self, states: Tensor, lengths: Tensor) -> Encoded:
        """Project states `(B, S, D)`: memory `tanh(W x + b)`, `(B, S, M)`, and its mean as the final state."""
        vectors = torch.tanh(self.project(states))
        mask = Padded(vectors, lengths).mask
        vectors = vectors.masked_fill(~mask[..., None], 0)
        memory = Padded(dropout(vectors, self.dropout, self.training), lengths)
        return Encoded(memory, CellState(masked_mean(memory.values, mask)[:, None]))

    def _load(self, name: str, pretrained: bool, config: Mapping[str, Any] | None) -> Any:
        try:
            from transformers import AutoConfig, AutoModel
        except ImportError as error:
            kind = type(self).__name__
            raise UserError(f"{kind} needs transformers, which is not installed: {install('vision')}") from error
        config = None if config is None else _closed(config)
        try:
            if config is not None:
                self._config = cast(Any, AutoConfig).for_model(**config)
            else:
                found = AutoConfig.from_pretrained(name, trust_remote_code=False)
                self._config = getattr(found, "vision_config", found) if self.reads == "pixel_values" else found
            make = AutoModel.from_pretrained if pretrained else cast(Any, AutoModel).from_config
            model: Any = make(name if pretrained else self._config, trust_remote_code=False)
        except Exception as error:
            if config is None and not isinstance(error, OSError | ValueError):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"the {self.of} model '{name}' cannot be loaded: {reason}") from error
        model = self.part(model)
        if (reads := getattr(model, "main_input_name", "text")) != self.reads:
            raise UserError(f"expected a model of {self.of}s, but '{name}' reads {reads}")
        return model

    def part(self, model: Any) -> Any:
        """Return the part of a model that encodes."""
        return model.get_encoder() if model.config.is_encoder_decoder else model


class TextBackbone(PretrainedEncoder):
    """A text model of `transformers`: BERT, RoBERTa, DistilBERT, the encoder of T5 or BART, and so on.

    Such as `distilbert/distilbert-base-uncased`. Its source feature is `lit_seq2seq.features.PretrainedTokenizer`, with
    the same name; its arguments are those of `PretrainedEncoder`.

    Raises:
        UserError: see `PretrainedEncoder`; or the model knows fewer symbols than the source has.

    Example:
        >>> blocks = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        >>> config = {"model_type": "bert", "vocab_size": 10, **blocks}  # random weights; without it those of the name
        >>> encoder = TextBackbone(10, "tiny", hidden_size=6, config=config)
        >>> encoder(Padded(torch.tensor([[2, 5, 3]]), torch.tensor([3]))).memory.values.shape
        torch.Size([1, 3, 6])
    """

    dimensions = 2

    reads = "input_ids"
    of = "text"

    def check(self, source_size: int, name: str) -> None:
        """Refuse symbols that the model does not know."""
        known = self.backbone.get_input_embeddings().num_embeddings
        if source_size > known:
            raise UserError(
                f"'{name}' knows {known} symbols, but the source has {source_size}: set data.source_feature to "
                "lit_seq2seq.features.PretrainedTokenizer with the same name"
            )

    def forward(self, source: Padded) -> Encoded:
        """Encode ids `(B, S)`."""
        longest = getattr(self.backbone.config, "max_position_embeddings", None)
        if longest is not None and source.values.shape[1] > longest:
            raise UserError(
                f"the text model reads {longest} symbols at most, but a source has {source.values.shape[1]}: set "
                "data.limits.max_source_length"
            )
        return self.sequence(self.states(input_ids=source.values, attention_mask=source.mask.long()), source.lengths)


class SpeechBackbone(PretrainedEncoder):
    """A model of raw recordings of `transformers`: wav2vec 2.0, HuBERT, WavLM and others with their convolutions.

    Such as `facebook/wav2vec2-base`. Its source feature is `lit_seq2seq.features.Waveform`, its arguments are those of
    `PretrainedEncoder`. Where the convolutions normalise over time
    (`feat_extract_norm: group`, as in the base models), padding would change the result: there every recording is
    encoded by itself.

    Raises:
        UserError: see `PretrainedEncoder`.
    """

    dimensions = 3

    reads = "input_values"
    of = "speech"
    alone = True

    def check(self, source_size: int, name: str) -> None:
        """Refuse vectors."""
        if source_size != 1:
            raise UserError(
                f"SpeechBackbone reads samples, not vectors of {source_size}: set source_feature to Waveform"
            )

    @property
    def shortest(self) -> int:
        """Number of samples that make one frame of the model."""
        config, samples = self.backbone.config, 1
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return int(samples)

    def span(self, count: int) -> int:
        """Count the samples between frames of the model; see `Encoder.span`."""
        return count * int(math.prod(self.backbone.config.conv_stride))

    def forward(self, source: Padded) -> Encoded:
        """Encode samples `(B, S, 1)`; the memory has a vector for each frame of the model."""
        samples = source.values[..., 0]
        lengths: Tensor = self.backbone._get_feat_extract_output_lengths(source.lengths)
        if torch.compiler.is_exporting():  # one recording
            return self.sequence(self.states(input_values=samples), lengths)
        if (found := int(source.lengths.min())) < self.shortest:
            raise UserError(
                f"a recording of {found} samples is too short for the speech model: it needs {self.shortest}"
            )
        if self.backbone.config.feat_extract_norm == "group":
            alone = [self._heard(row[None, : int(n)])[0] for row, n in zip(samples, source.lengths, strict=True)]
            states = nn.utils.rnn.pad_sequence(alone, batch_first=True)  # (B, S', D)
        else:
            states = self._heard(samples, attention_mask=source.mask.long())
        return self.sequence(states, lengths)

    def _heard(self, samples: Tensor, **inputs: Tensor) -> Tensor:
        """Run the model, whose SpecAugment fails in training where there are fewer frames than a mask is long."""
        frames = int(self.backbone._get_feat_extract_output_lengths(samples.shape[1]))
        if self.backbone.training and frames < self.backbone.config.mask_time_length:
            inputs["mask_time_indices"] = samples.new_zeros(len(samples), frames, dtype=torch.bool)
        return self.states(input_values=samples, **inputs)


_LEFT_OUT = (
    "auto_map",
    "trust_remote_code",
    "quantization_config",
    "name_or_path",
    "id2label",
    "label2id",
    "use_kernels",
)
"""Entries of a saved configuration that have no place in building a model of random weights."""


def _closed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved configuration without what lets transformers fetch or run something.

    Raises:
        UserError: a part of the model would come from elsewhere.
    """
    kept = {}
    for name, value in config.items():
        if name.startswith("_") or "implementation" in name or name in _LEFT_OUT:
            continue
        inner = value if isinstance(value, list) else [value]
        if any(isinstance(item, str) and ("/" in item or name == "backbone") for item in inner):
            raise UserError(
                f"the configuration of the pretrained model names {value!r:.80} as its {name}, which would be fetched "
                "from elsewhere: a saved model holds all its parts, this one is damaged or hostile"
            )
        closed = [_closed(item) if isinstance(item, Mapping) else item for item in inner]
        kept[name] = closed if isinstance(value, list) else closed[0]
    return kept | ({"use_pretrained_backbone": False} if "use_pretrained_backbone" in kept else {})


def freeze(model: nn.Module, trainable_blocks: int) -> None:
    """Freeze a model but for its last blocks, the members of its longest list of layers; -1 frees all."""
    model.requires_grad_(trainable_blocks < 0)
    blocks = longest_list(model)
    if trainable_blocks > len(blocks):
        raise UserError(f"trainable_blocks must be at most {len(blocks)}, as many as there are, got {trainable_blocks}")
    for block in blocks[len(blocks) - max(trainable_blocks, 0) :]:
        block.requires_grad_(True)


def _width(config: Any) -> int:
    sizes = getattr(config, "hidden_sizes", None)
    return int(sizes[-1] if sizes else config.hidden_size)
