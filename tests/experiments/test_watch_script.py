import pytest

from tests.scripts import run


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_says_what_it_expects(flag):
    assert "watch.py WORKDIR [WORKDIR ...]" in run("watch.py", flag)
