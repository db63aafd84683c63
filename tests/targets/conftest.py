"""TF1's cells and layers warn that they are deprecated, and they are what is tested here."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/targets/test_tf_" in item.nodeid:
            item.add_marker(
                pytest.mark.filterwarnings(r"ignore:`tf\.(nn\.rnn_cell|layers)\.\w+` is deprecated:UserWarning")
            )
