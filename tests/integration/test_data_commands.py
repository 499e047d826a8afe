"""`mcf data` as a person runs it: what it prints, and its exit codes."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import lmdb
import pytest

from service.cli.demo import _lfw as make_lfw
from tests.forks import forks

ROOT = Path(__file__).parents[2]


class Mcf:
    """The command, in a folder with a copy of the drawn faces, and with a cache of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.faces = folder, folder / "faces"

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """What it said on standard output and standard error together, but for the time that it took."""
        env = {**os.environ, "PYTHONPATH": str(ROOT), "MCF_CACHE_DIR": str(self.folder / "cache")}
        done = forks.run("service.cli.main:app", "data", *arguments, cwd=self.folder, env=env, merged=True)
        assert done.returncode == code, done.stdout
        assert "Traceback" not in done.stdout
        return re.sub(r"^\w+.* \(\d+ s\)\n", "", done.stdout, flags=re.M)


@pytest.fixture
def mcf(tiny_faces: Path, tmp_path: Path) -> Mcf:
    shutil.copytree(tiny_faces, tmp_path / "faces")
    return Mcf(tmp_path)


def digest_in(text: str) -> str:
    return text.partition("digest")[2].strip(": ")[:64]


def test_the_page_s_commands_print_what_it_says(tmp_path: Path) -> None:
    run, you = Mcf(tmp_path), "/home/you/mcf"
    make_lfw(tmp_path / ".mcf/data/lfw")
    page = "\n\n".join(re.findall(r"```console\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.S))
    for block in page.split("$ ")[1:]:
        command, _, told = block.strip().partition("\n")
        if not command.startswith("mcf data "):
            subprocess.run(command, shell=True, cwd=tmp_path, check=True)
            continue
        wrong = told.endswith("problems") or "index the data anew" in told
        assert run(*shlex.split(command)[2:], code=int(wrong)).replace(str(tmp_path), you).strip() == told, command


def test_linked_folders_are_read_and_what_is_not_read_is_counted(mcf: Mcf) -> None:
    linked = mcf.folder / "linked"
    linked.mkdir()
    (linked / "faces").symlink_to(mcf.faces)
    (linked / "loop").symlink_to(linked)
    (linked / "note.txt").touch()
    for number in range(5):
        (linked / f"gone{number}.png").symlink_to("nothing")
    shown = mcf("show", "linked")
    assert f"{linked} (folder): 48 images" in shown
    assert shown.splitlines()[-1] == (
        "not read: 1 (a folder that is read under another name): loop; "
        "5 (a link to nothing): gone0.png, gone1.png, gone2.png, ...; 1 (files of other kinds): note.txt"
    )
    assert "not read" not in mcf("show", "faces")


def test_a_folder_is_indexed_shown_sharded_and_verified(mcf: Mcf) -> None:
    indexed = mcf("index", "faces")
    assert indexed.startswith("48 images, ")
    assert indexed.endswith(f"index: {mcf.faces}.index (data.index of a spec)\n")

    shown = mcf("show", "faces", "--index", "faces.index", "--subset-size", "20", "--held-out", "8")
    assert f"{mcf.faces} (folder): 48 images" in shown
    assert f"digest: {digest_in(indexed)}" in shown
    assert "first keys: face000.png, face001.png, face002.png\n" in shown
    assert "subset: 20 images, seed 0, digest " in shown
    assert "held out: 8 images, digest " in shown

    sharded = mcf("shard", "faces", "out", "--size-mib", "0.01")
    assert f"shards: {mcf.folder}/out\n" in sharded
    assert digest_in(sharded) == digest_in(indexed)
    assert mcf("shard", "faces", "out", "--size-mib", "0.01") == sharded
    assert "out (shards): 48 images" in mcf("show", "out")

    for what in "faces", "out":
        assert mcf("verify", what) == "48 images: all as indexed, and all can be decoded\n"


def test_verify_names_what_is_missing_changed_extra_and_undecodable(mcf: Mcf) -> None:
    (mcf.faces / "broken.png").write_bytes(b"no image")
    odd = Path(os.fsdecode(bytes(mcf.faces) + b"/\xff.png"))
    odd.write_bytes(b"nor this")
    mcf("index", "faces")
    cut, changed, missing = (mcf.faces / f"face00{number}.png" for number in range(3))
    cut.write_bytes(cut.read_bytes()[:-10])
    data = bytearray(changed.read_bytes())
    data[-20] ^= 1
    changed.write_bytes(data)
    missing.unlink()
    shutil.copy(mcf.faces / "face009.png", mcf.faces / "extra.png")

    said = mcf("verify", "faces", code=1).splitlines()
    size = cut.stat().st_size
    assert f"missing or changed: face000.png: image 'face000.png' has {size} bytes, {size + 10} when" in said[1]
    assert said[2] == "changed: face001.png: it has other bytes than when it was indexed"
    assert said[3].startswith("missing or changed: face002.png: image 'face002.png' is gone from")
    assert said[0].startswith("undecodable: broken.png: its bytes are no image of a kind that can be read")
    assert said[4].startswith(r"undecodable: \udcff.png: ")
    assert said[5:] == ["extra: extra.png: the index does not name it", "50 images: 6 problems"]
    # A run would be refused.
    assert "is not the index of" in mcf("show", "faces", "--index", "faces.index", code=1)


def test_without_an_index_verify_says_that_it_compared_with_nothing(mcf: Mcf) -> None:
    said = mcf("verify", "faces")
    assert "48 images: all can be decoded" in said
    assert "not compared with an index, because there is none: `mcf data index` writes one" in said


def test_verify_reads_databases_and_shards(mcf: Mcf) -> None:
    def fill(count: int) -> None:
        with lmdb.open(str(mcf.folder / "db"), map_size=1 << 22) as env, env.begin(write=True) as txn:
            txn.put(b"length", b"%d" % count)
            for image in sorted(mcf.faces.iterdir())[:count]:
                txn.put(image.name.encode(), image.read_bytes())

    fill(9)
    mcf("index", "db")
    assert "9 images: all as indexed" in mcf("verify", "db")
    fill(10)
    assert "extra: face009.png" in mcf("verify", "db", code=1)

    (mcf.folder / "keys.txt").write_text("face003.png\nface001.png\n")
    assert "(lmdb): 2 images" in mcf("show", "db", "--keys", "keys.txt")

    mcf("shard", "db", "out")
    shard = next((mcf.folder / "out").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    assert "changed: face" in mcf("verify", "out", code=1)
    shard.write_bytes(data[:-1])
    assert "it was cut short or changed" in mcf("verify", "out", code=1)


def test_s3_to_s3(mcf: Mcf, s3_server: str, tiny_faces: Path) -> None:
    indexed = mcf("shard", "faces", f"{s3_server}/out", "--size-mib", "0.01")
    assert digest_in(mcf("show", f"{s3_server}/out")) == digest_in(indexed)
    mcf("index", f"{s3_server}/out", "--output", f"{s3_server}/elsewhere.index")
    said = mcf("verify", f"{s3_server}/out", "--index", f"{s3_server}/elsewhere.index")
    assert "48 images: all as indexed" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "nowhere"], "there is no folder"),
        (["index", "empty"], "holds no images"),
        (["show", "faces", "--keys", "keys.txt"], "--keys is for an LMDB, and"),
        (["show", "faces", "--format", "shards"], "holds no shards"),
        (["show", "faces", "--index", "none"], "there is no index"),
        (["show", "faces", "--subset-size", "49"], "asked for a subset of 49 images; possible: 1 to "),
        (["verify", "faces", "--index", "faces/face000.png"], "is no complete index"),
        (["index", "s3://none/here"], "s3://none/here"),
    ],
)
def test_what_cannot_be_done_says_why(mcf: Mcf, s3_server: str, arguments: list[str], said: str) -> None:
    (mcf.folder / "empty").mkdir()
    assert said in mcf(*arguments, code=1)
