"""What the tests of suites share."""

import pytest

from tests.harness import suites


@pytest.fixture(scope="session")
def ground(tmp_path_factory):
    """Return a folder with studies, their paths, two runs, and how many cells a suite of them has filled in out/."""
    folder = tmp_path_factory.mktemp("suite")
    paths = [suites.write(folder / "one.h5ad"), suites.write(folder / "two.h5ad", 1)]
    runs = [suites.entrant("cellplm", "first"), suites.entrant("scemb", "second")]
    return folder, paths, runs, suites.make(folder / "out", runs, paths).run()
