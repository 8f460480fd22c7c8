"""yoyodyne in the arena; runs in its own environment: `yoyodyne_program.py YAML STEPS`."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from lightning.pytorch.callbacks import Callback
from windows import Windows


class Ticks(Callback):
    """Ends a window after its number of training steps."""

    def on_train_start(self, trainer, pl_module):
        """Wait for the first window."""
        self.windows = Windows(int(os.environ["WINDOW_STEPS"]))
        self.windows.start()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        """Count the target symbols of a step, EOS with them, padding not."""
        self.windows.step(int((~batch.target.mask).sum()))


if __name__ == "__main__":
    from yoyodyne.cli.main import main

    os.environ["WINDOW_STEPS"] = sys.argv[2]
    sys.argv = ["yoyodyne", "fit", "--config", sys.argv[1]]
    main()
