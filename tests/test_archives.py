"""Pictures in zip and tar archives: scored as the same files are, and whatever is wrong with one is a line."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from trees import png

from tipsomaly.cli.sources import spread
from tipsomaly.data import archives
from tipsomaly.data.archives import Archive
from tipsomaly.detection.records import read_records
from tipsomaly.detection.references import References
from tipsomaly.errors import ImageError


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", **attributes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(content))


def outcomes(path: Path) -> dict[str, str | bytes]:
    """By the name within the archive: the content, or the error without what it begins with."""
    found = {}
    for picture in Archive(path):
        name, error = picture.name.removeprefix(f"{path}/"), picture.content
        assert name not in found
        if isinstance(error, ImageError):
            assert str(error).isprintable()
            assert str(error).startswith(f"{path}")
        found[name] = str(error).split(": ", 1)[1] if isinstance(error, ImageError) else error
    return found


def test_archives_are_scored_as_their_files_are(here, golden, tmp_path):
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(png(i))
    with zipfile.ZipFile(tmp_path / "parts.zip", "w") as archive:
        archive.write(folder / "0.png", "../inner/0.png")
        archive.writestr("broken.png", png()[:60])
        archive.writestr("notes.txt", "no picture")
    with tarfile.open(tmp_path / "shard-0.tgz", "w:gz") as tar:
        add(tar, "1.json", b"{}")
        add(tar, "1.png", png(1))
        add(tar, "0.png", png(0))
    command = ["detect", tmp_path / "parts.zip", folder / "2.png", tmp_path / "*.tgz", "--model", golden.folder]
    command += ["--output", out, "--batch-size", 2]
    done = here(*command, "--format", "yolo")
    broken = f"{tmp_path}/parts.zip/broken.png: damaged or truncated"
    assert done.returncode == 1
    assert f"error: {broken}" in done.stderr
    assert done.stderr.endswith("1 of 5 pictures failed\n")
    records = {Path(r["image"]).relative_to(tmp_path).as_posix(): r for r in read_records(out / "results.jsonl")}
    assert list(records) == [
        "parts.zip/inner/0.png",
        "parts.zip/broken.png",
        "pictures/2.png",
        "shard-0.tgz/1.png",
        "shard-0.tgz/0.png",
    ]
    same = here("detect", folder, "--model", golden.folder, "--batch-size", 2, "--json").stdout.splitlines()
    scores = [json.loads(line)["score"] for line in same]
    found = [records[name].get("score") for name in records]
    assert found == pytest.approx([scores[0], None, scores[2], scores[1], scores[0]], abs=1e-4)
    files = {path.name for path in out.iterdir() if path.is_file()}
    assert {f"{stem}_{kind}" for stem in ("0", "0_2", "1", "2") for kind in ("map.npy", "overlay.png")} < files
    assert Image.open(out / "yolo" / "images" / "1.png").size == (31, 20)
    # Again: what has a result is not scored, the broken one is tried.
    done = here(*command, "--json")
    assert json.loads(done.stdout)["error"].startswith(broken)
    assert "4 of 5 pictures have results" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "parts.zip", "pictures", "shard-0.tgz"]


def test_what_does_not_go_with_archives_is_said_first(here, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w"):
        pass
    for options, message in (
        (["--mutual"], "not in archives"),
        (["--format", "labelstudio", "--output", tmp_path / "out"], "Label Studio opens files"),
        (["--engine", "ray", "--output", tmp_path / "out"], "no archives and no hf://"),
    ):
        done = here("detect", tmp_path / "a.zip", *options)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr


def test_a_hostile_zip(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBER", 2000)
    path = tmp_path / "hostile.ZIP"
    good = png()
    markup = "<img src=x onerror=alert(1)>.png"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.png", good)
        archive.writestr("a.png", good)
        archive.writestr("a_2.png", good)
        for name in ("../../up.png", "/etc/root.png", "C:\\x\\drive.png", "..", "new\nline.png", markup):
            archive.writestr(name, good)
        archive.writestr("bomb.png", b"\0" * 10**7)
        archive.writestr("inner.tar.gz", b"")
        archive.writestr("secret.png", good)
        archive.writestr("bad.png", b"x" * 100, zipfile.ZIP_STORED)
        archive.writestr("__MACOSX/._a.png", b"")
        archive.writestr("last.png", good)
        directory = archive.start_dir
    content = bytearray(path.read_bytes().replace(b"x" * 100, b"y" * 100))
    entry = content.index(b"secret.png", directory) - 46
    content[entry + 8] |= 1  # encrypted, its directory says
    path.write_bytes(content)
    found = outcomes(path)
    fine = ["a.png", "a_2.png", "a_2_2.png", "up.png", "etc/root.png", "C:/x/drive.png", "new/nline.png", markup]
    fine[6] = "new\\nline.png"
    assert [name for name, content in found.items() if content == good] == [*fine, "last.png"]
    assert {name: error for name, error in found.items() if error != good} == {
        "bomb.png": "more than 0 MiB unpacked",
        "inner.tar.gz": "an archive in an archive: unpack the outer one",
        "secret.png": "cannot be unpacked: it is encrypted",
        "bad.png": "cannot be unpacked (Bad CRC-32 for file 'bad.png')",
    }
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_hostile_tar(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBER", 2000)
    path, good = tmp_path / "hostile.tar", png()
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, "../up.png", good)
        add(archive, "/root.png", good)
        add(archive, "ü" * 200 + ".png", good)  # its name is in a header of its own
        add(archive, "link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(archive, "pipe.png", type=tarfile.FIFOTYPE)
        add(archive, "large.png", b"\0" * 3000)
        add(archive, "last.png", good)
    found = outcomes(path)
    assert [name for name, content in found.items() if content == good] == [
        "up.png",
        "root.png",
        "ü" * 200 + ".png",
        "last.png",
    ]
    errors = ["a link or a device, not a file"] * 2 + ["more than 0 MiB unpacked"]
    assert [found[name] for name in ("link.png", "pipe.png", "large.png")] == errors


def header(**attributes) -> bytes:
    info = tarfile.TarInfo("x.png")
    for key, value in attributes.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (header(size=2**40, type=tarfile.XHDTYPE), "damaged: a header of"),
        (header(size=2**33, type=tarfile.GNUTYPE_LONGNAME), "damaged: a header of"),
        (header(size=-1024), "damaged: "),
        (b"no header at all" * 32, "damaged: what follows cannot be read"),
        (header()[:100], "damaged: what follows cannot be read"),
    ],
)
def test_a_tar_that_is_damaged_on_the_way(tmp_path, second, message):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        add(archive, "good.png", png())
    path = tmp_path / "x.tar.gz"
    path.write_bytes(
        gzip.compress(file.getvalue()[: archive.offset - 1024] + second + bytes(1024 * (len(second) > 99)))
    )
    found = outcomes(path)
    assert found.pop("good.png") == png()
    assert message in list(found.values())[-1]


def test_what_is_no_archive(tmp_path):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        add(archive, "a.png", bytes(range(256)) * 100)
    for name, content, message in (
        ("text.zip", b"text", "damaged or no archive of this kind (File is not a zip file)"),
        ("text.tar", b"text" * 500, "damaged or no archive of this kind"),
        ("empty.tgz", b"", "damaged or no archive of this kind (empty file)"),
        ("cut.tgz", whole.getvalue()[:-30], "damaged"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        *_, last = Archive(path)
        assert message in str(last.content)
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("notes.txt", "x")
    ((name, error),) = [(picture.name, str(picture.content)) for picture in Archive(tmp_path / "none.zip")]
    assert error == f"{name}: no pictures in this archive"


def test_references_from_an_archive_are_those_of_its_files(here, golden, tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(7)]
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as archive:
        for i, file in enumerate(files):
            file.write_bytes(png(i))
            archive.write(file, file.name)
    options = ["--model", golden.folder, "--output"]
    assert here("reference", *files, *options, tmp_path / "files.safetensors").returncode == 0
    done = here("reference", tmp_path / "good.zip", *options, tmp_path / "zip.safetensors")
    assert done.returncode == 0, done.stderr
    one, other = (References.load(tmp_path / f"{name}.safetensors") for name in ("files", "zip"))
    assert one.summary() == other.summary()
    assert (one.image_threshold, one.pixel_threshold) == (other.image_threshold, other.pixel_threshold)
    assert all(torch.equal(a, b) for a, b in zip(one.memory, other.memory, strict=True))
    for most, kept in ((7, range(7)), (3, range(0, 7, 2)), (2, range(0, 7, 2)), (1, range(0, 7, 4))):
        found, count = spread(iter(files), most)
        assert count == 7
        assert found == [files[i] for i in kept]
    (tmp_path / "bad.zip").write_bytes(b"no archive")
    done = here("reference", tmp_path / "bad.zip", *options, tmp_path / "bad.safetensors")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'bad.zip'}: ")
