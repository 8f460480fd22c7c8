"""Raw rows to arrays, without torch: tokenizers, other features, and the processor that holds both sides of a task."""

from lit_seq2seq.features.audio import LogMel, Waveform
from lit_seq2seq.features.augmentation import SpecAugment
from lit_seq2seq.features.copying import CopyMap
from lit_seq2seq.features.feature import Feature
from lit_seq2seq.features.image import Image
from lit_seq2seq.features.multi import MultiSource
from lit_seq2seq.features.pretrained import PretrainedTokenizer
from lit_seq2seq.features.processor import Processor
from lit_seq2seq.features.prompt import Prompt
from lit_seq2seq.features.records import Records
from lit_seq2seq.features.sherpa import SherpaLogMel
from lit_seq2seq.features.speech import Frames, VectorFeature
from lit_seq2seq.features.streams import FeatureStream
from lit_seq2seq.features.tokenizer import Tokenizer
from lit_seq2seq.settings.arguments import check_constructors

__all__ = [
    "CopyMap",
    "Feature",
    "FeatureStream",
    "Frames",
    "Image",
    "LogMel",
    "MultiSource",
    "PretrainedTokenizer",
    "Processor",
    "Prompt",
    "Records",
    "SherpaLogMel",
    "SpecAugment",
    "Tokenizer",
    "VectorFeature",
    "Waveform",
]

check_constructors(__name__)
