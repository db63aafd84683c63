"""``weightport demo``: the main job, on a pretrained model that comes with weightport.

The model is a character LSTM with 32 units and one scope per gate, trained for 600 steps (Adam, loss 3.30 to 0.24) on
the Gettysburg Address. It is moved into Keras' layout; then both go on with the same prompt, each by the equations of
its own packing.

Promise: no network and no framework; where TensorFlow is installed, the weights are moved into a live variable scope
too. Limit: what the two write is greedy, so that equal weights write equal text.
"""

from __future__ import annotations

from weightport.demo.run import Demo, Run

__all__ = ["Demo", "Run"]
