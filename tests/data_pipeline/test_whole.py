"""Files and folders are whole or not there, and what a killed process left is removed at the next write."""

import errno
import os
import pathlib
import subprocess
import sys

import pytest

from data_pipeline.files import whole

KILLED = """
import os, sys
from data_pipeline.files import whole
with getattr(whole, sys.argv[1])(sys.argv[2]) as partial:
    (partial / "a" if sys.argv[1] == "writing_folder" else partial).write_text("half")
    os._exit(9)
"""
ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("way", ["writing", "writing_folder"])
def test_what_a_killed_process_was_writing_is_removed_at_the_next_write_of_it(way, tmp_path):
    for name in ("out.h5ad", "out.h5ad.other"):
        done = subprocess.run([sys.executable, "-c", KILLED, way, str(tmp_path / name)], cwd=ROOT)
        assert done.returncode == 9
    alive = tmp_path / f".out.h5ad.{whole._owner().rpartition('.')[0]}.{os.getppid()}"
    alive.write_text("of a process that is at work")
    elsewhere = tmp_path / f".out.h5ad.another-machine.{2**22 + 1}"
    elsewhere.write_text("of a process nobody here can know of")
    assert len(list(tmp_path.iterdir())) == 4
    with getattr(whole, way)(tmp_path / "out.h5ad") as partial:
        (partial / "a" if way == "writing_folder" else partial).write_text("whole")
    left = {path.name for path in tmp_path.iterdir()}
    assert {"out.h5ad", alive.name, elsewhere.name} < left and len(left) == 4
    assert not [name for name in left if name.startswith(".out.h5ad.") and name not in (alive.name, elsewhere.name)
                and ".other." not in name]  # fmt: skip


@pytest.mark.parametrize("way", ["writing", "writing_folder"])
def test_a_full_disk_names_the_file(way, tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match=r"No space left on device.*out.json"), getattr(whole, way)(tmp_path / "out.json"):
        raise full
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="elsewhere"), whole.writing(tmp_path / "out.json"):
        (tmp_path / "elsewhere").read_text()
