"""Nothing on disk gives a wrong number silently, and no kill changes where a command ends: see `tests.attack`."""

import pytest

from tests import attack


@pytest.mark.parametrize("target", ["weights", "gene graph", "results.jsonl", "scores.json", "pictures"])
def test_no_flip_and_no_cut_is_silent(target, tmp_path, capsys):
    assert attack.attack(tmp_path, 40, 10, 0, [target])
    assert f"{target}: 40 flips and 10 cuts" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("target", ["store", "newest checkpoint", "metrics.jsonl"])
def test_no_flip_and_no_cut_of_a_run_or_a_store_is_silent(target, tmp_path):
    assert attack.attack(tmp_path, 40, 10, 0, [target])


@pytest.mark.slow
@pytest.mark.parametrize("target", list(attack.KILLS))
def test_a_killed_command_ends_where_the_uninterrupted_one_does(target, tmp_path):
    assert attack.attack(tmp_path, 0, 0, 2, [target])
