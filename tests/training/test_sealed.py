"""JSON that carries its checksum: a changed digit is no number, a torn line never hides those beside it."""

import json

import numpy as np
import pytest

from scfm_jax.saving import sealed
from scfm_jax.saving.secret import masked

ROW = {"step": 12, "loss": 0.123456, "name": 'a "crc": "00000000"}', "none": None}


@pytest.mark.parametrize("indent", [None, 1])
def test_no_flipped_bit_and_no_cut_gives_other_content(indent):
    text = sealed.dumps(ROW, indent).encode()
    assert json.loads(text) == ROW | {"crc": json.loads(text)["crc"]} and sealed.loads(text) == (ROW, True)
    changed = [bytes([*text[:i], text[i] ^ 1 << bit, *text[i + 1 :]]) for i in range(len(text)) for bit in range(8)]
    silent = 0
    for other in changed + [text[:n] for n in range(len(text))]:
        try:
            content, has_seal = sealed.loads(other)
        except sealed.Damaged:
            continue
        assert {key: content.get(key) for key in ROW} == ROW
        silent += has_seal
    assert silent <= 40, "only blanks between the last keys may change unnoticed"


def test_lines_that_are_damaged_are_named_and_the_others_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [sealed.dumps({"step": n, "loss": n / 8}) for n in range(1, 5)]
    path.write_text("\n".join([lines[0], lines[1].replace("0.25", "0.26"), '{"step": 9, "loss": 9.0}', lines[3][:-9]]))
    read = sealed.read_lines(path)
    assert read.rows == [(1, {"step": 1, "loss": 0.125})]
    assert read.problems == [
        "metrics.jsonl, line 2 does not match its checksum: passed over",
        "metrics.jsonl, line 3 lost its checksum: passed over",
        "metrics.jsonl, line 4 is torn or damaged: passed over",
    ]


def test_what_an_older_version_wrote_is_read_and_said_to_have_no_checksum(tmp_path):
    path = tmp_path / "old.jsonl"
    path.write_text('{"step": 1}\n' + sealed.dumps({"step": 2}) + "\n")
    read = sealed.read_lines(path)
    assert [row["step"] for _, row in read.rows] == [1, 2]
    assert len(read.problems) == 1 and "has no checksum" in read.problems[0]
    path.write_text('{"rows": [1]}')
    assert sealed.read(path) == ({"rows": [1]}, False)


def test_a_torn_last_line_is_cut_before_the_next_is_appended(tmp_path):
    path = tmp_path / "x.jsonl"
    whole = sealed.dumps({"step": 1})
    for text in (f"{whole}\n" + whole[:7], f"{whole}\n", whole):
        path.write_text(text)
        with sealed.open_lines(path) as file:
            file.write(f"{sealed.dumps({'step': 2})}\n".encode())
        read = sealed.read_lines(path)
        assert [row["step"] for _, row in read.rows] == [1, 2] and not read.problems
    path.write_text('{"step": 1')
    sealed.open_lines(path).close()
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("text", "says"), [("", "is empty"), ("[" * 200_000, "nested"), ("[1]", "no JSON object"), ('{"a": 1', "torn")]
)
def test_what_is_no_object_is_one_line_that_names_the_file(text, says, tmp_path):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(sealed.Damaged, match=says) as error:
        sealed.read(tmp_path / "scores.json")
    assert "scores.json" in str(error.value) and "\n" not in str(error.value)


def test_a_seal_that_lacks_an_entry_is_one_line():
    assert sealed.unseal(sealed.seal({"a": 1}), ("a",)) == {"a": 1}
    with pytest.raises(sealed.Damaged, match="no entry 'leaves'"):
        sealed.unseal(sealed.seal({"a": 1}), ("a", "leaves"))
    with pytest.raises(sealed.Damaged, match="not readable"):
        sealed.unseal('{"sha256": "", "content": ' + "[" * 200_000)


def test_no_flipped_bit_of_a_picture_gives_other_arrays(tmp_path):
    path, arrays = tmp_path / "a.npz", {"embedding": np.arange(6.0), "label": np.array(["T cell", "B cell"])}
    np.savez_compressed(path, **arrays)
    data = path.read_bytes()
    for place in range(0, len(data), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        try:
            read = sealed.read_arrays(path)
        except sealed.Damaged as damage:
            assert "a.npz" in str(damage) and "\n" not in str(damage)
            continue
        assert all((read[name] == array).all() for name, array in arrays.items())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(sealed.Damaged, match="torn or damaged"):
        sealed.read_arrays(path)


def test_secrets_of_a_config_are_masked_and_nothing_else():
    config = {
        "train": {"wandb_api_key": "abc", "steps": 3, "login": {"password": "x", "token": ""}},
        "model": {"class_token": "cls", "n_tokens": 4, "key_size": 8},
        "data": {"label_key": "cell_type", "store": "s3://me:pw@host/store", "secret": ["a", "b"]},
    }
    config["model"]["class_token"] = 1
    masks = masked(config)
    assert masks["train"] == {"wandb_api_key": "***", "steps": 3, "login": {"password": "***", "token": ""}}
    assert masks["model"] == config["model"]
    assert masks["data"] == {"label_key": "cell_type", "store": "s3://***@host/store", "secret": ["***", "***"]}
    assert masked("hf_1", "data.token") == "***"
