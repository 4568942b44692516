"""A desk in SQLite."""

import pytest

from tests.labeling import desks


@pytest.fixture
def desk(tmp_path):
    with desks.serve(f"sqlite:///{tmp_path / 'labels.sqlite'}") as served:
        yield served
