"""Pictures of attention, live outputs and training curves; no global matplotlib state, so any thread will do."""

from lit_seq2seq.plots.attention import AttentionExample as AttentionExample
from lit_seq2seq.plots.attention import plot_attention as plot_attention
from lit_seq2seq.plots.attention import plot_attention_grid as plot_attention_grid
from lit_seq2seq.plots.captions import CaptionExample as CaptionExample
from lit_seq2seq.plots.captions import plot_captions as plot_captions
from lit_seq2seq.plots.curves import plot_curves as plot_curves
from lit_seq2seq.plots.lattice import plot_lattice as plot_lattice
from lit_seq2seq.plots.lattice import plot_lattices as plot_lattices
from lit_seq2seq.plots.live import plot_live as plot_live
