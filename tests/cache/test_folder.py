"""The folder of a build: whose files it holds, and who may write there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_helpers import (
    PREAMBLE,
    Recorder,
    assert_numbered,
    make_views,
    numbered_batch,
    return_pixels,
)

from msdlosses import TeacherCache

WAITING_BUILD = """
def loader():
    yield {"index": torch.tensor([0]), "pixels": torch.ones(1, 2), "tokens": torch.zeros(1, 1)}
    print("started", flush=True)
    sys.stdin.read()
views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0.0))
TeacherCache.build(lambda pixels, tokens: pixels, views, loader(), sys.argv[1], fingerprint="v1")
"""


def build(path: Path, batches: Any = None, **options: Any) -> TeacherCache:
    batches = [numbered_batch(0, 1)] if batches is None else batches
    return TeacherCache.build(return_pixels, make_views(), batches, path, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


FOREIGN = [
    "msdlosses-build.json",
    "train.records",
    "places.i8",
    "build.json",
    "manifest.json",
    "0000-0000.records",
    "x",
]


@pytest.mark.parametrize("batches", [[], None], ids=["no samples", "samples"])
@pytest.mark.parametrize("fingerprint", [None, "v1"])
@pytest.mark.parametrize("content", [b"mine", b'{"format": 3}'], ids=["text", "JSON"])
@pytest.mark.parametrize("name", FOREIGN)
def test_folder_of_somebody_else_is_refused(
    name: str, content: bytes, fingerprint: str | None, batches: Any, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileExistsError, match="not of a cache") as error:
        build(tmp_path, batches, fingerprint=fingerprint)
    assert str(tmp_path) in str(error.value)
    assert contents(tmp_path) == {name: content}


@pytest.mark.parametrize("name", ["build.json", "manifest.json", "lock"])
def test_empty_file_of_somebody_else_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(FileExistsError, match="not of a cache"):
        build(tmp_path)
    assert contents(tmp_path) == {name: b""}


@pytest.mark.parametrize("fingerprint", [None, "v1", "v2"])
def test_files_that_others_add_to_a_build_are_not_touched(
    fingerprint: str | None, killed: Path
) -> None:
    mine = {"train.records": b"mine", "0000.rows": b"", "0000-0001.records": b"{}", "a.part": b"x"}
    for name, content in mine.items():
        (killed / name).write_bytes(content)
    cache = build(killed, [numbered_batch(5, 1)], fingerprint=fingerprint)
    assert_numbered(cache, [5, 1])
    assert mine.items() <= contents(killed).items()


@pytest.mark.parametrize("fingerprint", [None, "v1"])
def test_foreign_manifest_in_a_build_is_not_replaced(fingerprint: str | None, killed: Path) -> None:
    (killed / "manifest.json").write_text("mine")
    before = contents(killed)
    with pytest.raises(FileExistsError, match="not of a cache"):
        build(killed, fingerprint=fingerprint)
    assert contents(killed) == before


def test_finished_folder_holds_only_the_cache(tmp_path: Path) -> None:
    build(tmp_path, fingerprint="v1")
    assert sorted(contents(tmp_path)) == ["0000-0000.records", "0000.rows", "manifest.json"]


def test_second_process_fails_and_the_first_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PREAMBLE + WAITING_BUILD, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "started\n"
        for fingerprint in ("v1", "v2", None):
            with pytest.raises(FileExistsError, match="Another process is building"):
                build(tmp_path, fingerprint=fingerprint)
        process.communicate()
    assert process.returncode == 0
    assert TeacherCache.open(tmp_path, fingerprint="v1")[0]["full"].tolist() == [1.0, 1.0]


def test_build_that_finishes_while_another_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second build looks at the folder, the first finishes, and the second locks it."""
    from msdlosses.cache import _folder

    lock = _folder.LockedFile

    def finish_and_lock(path: Path) -> Any:
        monkeypatch.setattr(_folder, "LockedFile", lock)
        build(tmp_path, [numbered_batch(3)])
        return lock(path)

    monkeypatch.setattr(_folder, "LockedFile", finish_and_lock)
    with pytest.raises(FileExistsError, match="already holds a finished cache"):
        build(tmp_path)
    assert sorted(contents(tmp_path)) == ["0000-0000.records", "0000.rows", "manifest.json"]
    assert_numbered(TeacherCache.open(tmp_path), [3])


def test_folder_is_unlocked_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        build(tmp_path, [numbered_batch(0), 3])
    assert_numbered(build(tmp_path), [0, 1])


def test_relative_path_after_chdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = build(Path("cache"))
    opened = TeacherCache.open("cache")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for each in (cache, opened, cache.__reduce__()[0](*cache.__reduce__()[1])):
        assert_numbered(each, [0, 1])


def test_chdir_during_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    def loader() -> Iterator[Any]:
        yield numbered_batch(0)
        monkeypatch.chdir(tmp_path / "elsewhere")
        yield numbered_batch(1)

    assert build(Path("cache"), loader()).path == tmp_path / "cache"
    assert not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("rows", [(0, 5 * 10**8), (2**63 - 1, 3), (10**12,), (7, 8, 9)], ids=str)
def test_indices_may_be_far_apart(rows: tuple[int, ...], tmp_path: Path) -> None:
    batch = {**numbered_batch(*range(len(rows))), "index": torch.tensor(rows)}
    cache = build(tmp_path, [batch])
    assert len(cache) == len(rows)
    assert cache[[*rows]]["full"][:, 0].tolist() == [*range(len(rows))]
    for missing in (1, rows[0] - 1):
        with pytest.raises(IndexError, match=f"got {missing}"):
            cache[missing]
    with pytest.raises(IndexError):
        cache[-1]
    with pytest.raises(IndexError, match=f"slice of the {len(rows)} rows"):
        cache[:]


def test_more_shards_than_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    from msdlosses.cache import _shards, _writing

    monkeypatch.setattr(_writing, "MAX_SHARD", 1)
    monkeypatch.setattr(_shards, "MAX_OPEN", 8)
    used = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 60
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, hard))
    try:
        cache = build(tmp_path, [numbered_batch(row) for row in range(80)])
        assert len([*tmp_path.glob("*.records")]) == 80
        assert_numbered(cache, [*range(80), *range(80)])
        assert_numbered(TeacherCache.open(tmp_path, verify=True), [79, 0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_resumed_build_with_other_shapes_fails_at_the_first_batch(killed: Path) -> None:
    batches = [
        {"index": torch.tensor([10 + i]), "pixels": torch.ones(1, 5), "tokens": torch.ones(1, 1)}
        for i in range(5)
    ]
    teacher = Recorder()
    with pytest.raises(ValueError, match=r"\(2,\) for `full`, as before, got \(5,\).* on disk"):
        TeacherCache.build(teacher, make_views(), batches, killed, fingerprint="v1")
    assert len(teacher.pixels) == 3  # three views of one sample
    batches = [numbered_batch(2, 7)]
    assert_numbered(build(killed, batches, fingerprint="v1"), [5, 1, 0, 3, 2, 7][:2])
