"""Weights that come with the package promise: small, licensed, of a known origin, and an embedding in seconds."""

import numpy as np
import pytest

from data_pipeline import synthetic
from scfm_jax import api, pretrained
from scfm_jax.saving import weights


@pytest.mark.parametrize("name", pretrained.names())
def test_weights_are_small_and_say_where_they_are_from(name):
    file, card = pretrained.find(name), pretrained.card(name)
    assert file.stat().st_size < 5e6
    _, meta = weights.read(file)
    assert not any(f"'{folder}" in str(meta) for folder in ("/home", "/root", "/tmp", "/work", "/Users"))
    assert all(part in card for part in ("## Trained on", "licence", "## Genes", "floor", "random twin", "## Limits"))


def test_every_model_is_there_and_embeds_a_file_by_symbols():
    assert "cellplm-small" in pretrained.names()
    cells = synthetic.make(12, 40, seed=0)
    for name in pretrained.names():
        run = api.load(f"scfm:{name}")
        cells.var_names = run.second_names[:40]
        embedding = run.embed(cells, say=lambda _: None)
        assert embedding.shape[0] == 12 and np.isfinite(embedding).all() and np.ptp(embedding, 0).max() > 0, name


def test_a_name_that_is_not_there_is_told_the_nearest(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"scfm:x: no such weights come with scfm_jax; There are none"):
        api.load("scfm:x")
    (tmp_path / "cellplm-small.safetensors").touch()
    with pytest.raises(ValueError, match=r"did you mean scfm:cellplm-small\? There are cellplm-small"):
        api.load("scfm:celplm-smal")
    assert pretrained.place("runs/x").as_posix() == "runs/x"
