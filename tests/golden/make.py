"""Makes the golden folders of a format: small trained models, and what they write.

Run from the repository's root once for each new value of `lit_seq2seq.hub.folder.FORMAT`, by the first version that
writes it:

    python -m tests.golden.make

It writes `tests/golden/FORMAT-NAME/` with the folder of a model and `expected.json`. Commit them, and never change
them: `tests/test_golden.py` loads all of them with every later version.
"""

import json
import tempfile
from pathlib import Path

from lightning import seed_everything

from lit_seq2seq import pipeline
from lit_seq2seq.features import Tokenizer
from lit_seq2seq.hub.folder import FORMAT
from tests.tiny import make_data, make_model, make_trainer, pairs

KINDS = {
    "words": {"source_tokenizer": Tokenizer("word")},
    "shared": {"source_tokenizer": Tokenizer("bpe", vocab_size=40), "shared_vocabulary": True},
}

if __name__ == "__main__":
    for name, options in KINDS.items():
        seed_everything(1)
        model = make_model()
        with tempfile.TemporaryDirectory() as folder:
            make_trainer(Path(folder), max_epochs=40).fit(model, datamodule=make_data(**options))
        target = Path(__file__).parent / f"{FORMAT}-{name}"
        model.save_pretrained(target / "model", {"test_bleu": 12.5})
        inputs = pairs(4, seed=7)["source"]
        outputs = pipeline("translation", str(target / "model"))(inputs, num_beams=2)
        expected = {"inputs": inputs, "num_beams": 2, "outputs": outputs}
        (target / "expected.json").write_text(
            json.dumps(expected, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )
