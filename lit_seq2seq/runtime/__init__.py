"""Runs exported models with NumPy, onnxruntime and tokenizers alone.

`lit-seq2seq export` puts a copy of this package beside the model, so that nothing else needs to be installed.
"""
