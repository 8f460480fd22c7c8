"""`from runtime.model import Model`, as `lit_seq2seq.runtime.model` has it."""

from lit_seq2seq.runtime.model import Generated as Generated
from lit_seq2seq.runtime.model import Model as Model
