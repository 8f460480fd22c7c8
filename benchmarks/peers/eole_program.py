"""eole in the arena, in its own environment: `train YAML STEPS`, or `decode MODEL SOURCE BEAMS OUTPUT DTYPE`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from windows import Windows


def train(config: str, steps: int) -> None:
    """Train as `eole train` does, a window at a time; with 0 steps to the end, and save."""
    from eole.bin.main import main
    from eole.trainer import Trainer

    if steps:
        windows, step = Windows(steps), Trainer._train_step

        def ticking(self, batches, normalization, total_stats, report_stats, step_number=0, **options):
            if not total_stats.n_batchs:
                windows.start()
            before = total_stats.n_tokens
            step(self, batches, normalization, total_stats, report_stats, **options)
            windows.step(int(total_stats.n_tokens - before))

        Trainer._train_step = ticking
    sys.argv = ["eole", "train", "-config", config]
    main()


def decode(model: str, source: str, beams: int, output: str, dtype: str) -> None:
    """Translate all test sentences in each window; tokens are sentences here."""
    from eole.config.run import PredictConfig
    from eole.inference_engine import InferenceEnginePY

    config = PredictConfig(
        model_path=[model],
        src=source,
        output=output,
        beam_size=beams,
        compute_dtype=dtype,
        batch_size=64,
        batch_type="sents",
        max_length=60,
        max_length_ratio=1.25,
        gpu_ranks=[],
        world_size=1,
    )
    engine = InferenceEnginePY(config)
    sentences = len(Path(source).read_text().splitlines())
    windows = Windows(1)
    windows.start()
    while True:
        engine.infer_file()
        windows.step(sentences)


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(sys.argv[2], int(sys.argv[3]))
    else:
        decode(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5], sys.argv[6])
