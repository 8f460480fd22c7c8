"""`LitSeq2Seq`, and what keeps a run going."""
