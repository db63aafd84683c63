"""Puts the repository's root on the path, so that tests import their helpers as ``tests.support``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hypothesis

# How long an example takes on a busy machine says nothing about the project.
hypothesis.settings.register_profile("weightport", deadline=None)
hypothesis.settings.load_profile("weightport")

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
