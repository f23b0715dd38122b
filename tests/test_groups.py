"""Tests with the same `xdist_group` run in one process, so that what they share is made once."""

from __future__ import annotations

import os

import pytest


@pytest.mark.xdist_group("grouped")
def test_a_group_of_tests_is_known_to_xdist(request: pytest.FixtureRequest) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("there is one process alone")
    assert request.node.nodeid.endswith("@grouped"), "right: pip install -e '.[test]'"
