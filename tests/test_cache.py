"""The teacher cache: what was built comes back, from wherever, and nothing else does."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from msdlosses import Fill, ModalityViews, Shuffle, TeacherCache
from msdlosses.cache import _shards

Batch = dict[str, Tensor]

MANIFEST = "manifest.json"


class Teacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        logits: Tensor = self.layer(torch.cat([pixels, tokens], dim=1))
        return logits


def make_views(**options: Any) -> ModalityViews:
    return ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0.0), **options)


def make_data(size: int) -> Batch:
    return {"pixels": torch.rand(size, 3), "tokens": torch.rand(size, 2)}


def rows_of(data: Batch, rows: list[int], index: str | None = "index") -> Batch:
    """Some samples of the data, and which they are."""
    batch = {name: value[rows] for name, value in data.items()}
    return batch if index is None else {**batch, index: torch.tensor(rows, dtype=torch.long)}


def passed_on(pixels: Tensor, tokens: Tensor) -> Tensor:
    """A teacher whose logits are an entry of the batch."""
    return pixels


def logits_loader(logits: Tensor) -> list[Batch]:
    return [{"pixels": logits, "tokens": torch.zeros(len(logits), 1)}]


def assert_rounded(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal up to rounding to fp16."""
    assert list(found) == list(expected)
    for view, logits in expected.items():
        assert found[view].dtype == torch.float32
        torch.testing.assert_close(found[view], logits.detach(), rtol=2**-11, atol=2**-25)


@pytest.fixture
def teacher() -> Teacher:
    return Teacher()


@pytest.fixture
def cache(tmp_path: Path, teacher: Teacher) -> TeacherCache:
    """A finished cache of ten samples."""
    data = make_data(10)
    return TeacherCache.build(teacher, make_views(), [data], tmp_path / "c", fingerprint="v1")


# --- what goes in comes back


class Samples(Dataset[dict[str, Any]]):
    def __init__(self, data: Batch) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data["pixels"])

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {**{name: value[i] for name, value in self.data.items()}, "index": i}


def in_order(data: Batch, index: str | None) -> list[Batch]:
    return [rows_of(data, [*rows], index) for rows in (range(0, 4), range(4, 9), range(9, 10))]


LOADERS: dict[str, Callable[[Batch], Any]] = {
    "list": lambda data: in_order(data, "index"),
    "tuple": lambda data: tuple(in_order(data, "index")),
    "generator": lambda data: (batch for batch in in_order(data, "index")),
    "pairs": lambda data: [(batch, torch.zeros(1)) for batch in in_order(data, "index")],
    "DataLoader": lambda data: DataLoader(Samples(data), batch_size=3, shuffle=True),
    "backwards": lambda data: reversed(in_order(data, "index")),
    "no index": lambda data: in_order(data, None),
    "pairs without index": lambda data: ([batch, 0] for batch in in_order(data, None)),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_every_sample_gets_the_logits_of_the_teacher(
    loader: str, teacher: Teacher, tmp_path: Path
) -> None:
    data, views = make_data(10), make_views(views=("full", "~image", "image"))
    cache = TeacherCache.build(teacher, views, LOADERS[loader](data), tmp_path)
    assert len(cache) == 10
    assert cache.names == ("full", "~image", "image")
    assert_rounded(cache[torch.arange(10)], views(teacher, data))
    some = [3, 9, 3, 0]
    assert_rounded(cache[torch.tensor(some)], views(teacher, rows_of(data, some, None)))


@given(data=st.data())
def test_any_order_and_any_batches(data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=20, unique=True))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(rows)))))
    bounds = [0, *cuts, len(rows)]
    samples, teacher, views = make_data(41), Teacher(), make_views()
    batches = [rows_of(samples, rows[a:b]) for a, b in pairwise(bounds)]
    with TemporaryDirectory() as folder:
        cache = TeacherCache.build(teacher, views, batches, folder)
        assert len(cache) == max(rows) + 1
        expected = views(teacher, rows_of(samples, sorted(rows), None))
        assert_rounded(cache[torch.tensor(sorted(rows))], expected)
        for missing in set(range(len(cache))) - set(rows):
            with pytest.raises(IndexError, match=rf"written, got {missing}\."):
                cache[torch.tensor([missing])]


def test_a_cache_grows_over_many_batches(teacher: Teacher, tmp_path: Path) -> None:
    data, views = make_data(1000), make_views()
    batches = (rows_of(data, rows.tolist()) for rows in torch.randperm(1000).split(7))
    cache = TeacherCache.build(teacher, views, batches, tmp_path)
    assert_rounded(cache[torch.arange(1000)], views(teacher, data))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_logits_are_rounded_to_fp16(dtype: torch.dtype, tmp_path: Path) -> None:
    sizes = torch.logspace(-9, 4.8, 400, base=10, dtype=torch.float64)
    logits = (sizes * (torch.randint(0, 2, (400,)) * 2 - 1)).reshape(100, 4).to(dtype)
    logits[0, 0], logits[0, 1] = -torch.inf, 65504.0 if dtype != torch.bfloat16 else 65280.0
    cache = TeacherCache.build(passed_on, make_views(), logits_loader(logits), tmp_path)
    found = cache[torch.arange(100)]
    assert found["full"][0, 0] == -torch.inf
    torch.testing.assert_close(found["full"], logits.float(), rtol=2**-11, atol=2**-25)


@pytest.mark.parametrize("shape", [(), (3,), (5, 3)], ids=str)
def test_logits_of_any_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    logits = torch.rand(6, *shape)
    cache = TeacherCache.build(passed_on, make_views(), logits_loader(logits), tmp_path)
    found = cache[torch.tensor([5, 0])]["full"]
    assert found.shape == (2, *shape)
    torch.testing.assert_close(found, logits[[5, 0]], rtol=2**-11, atol=0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_an_index_of_any_type_of_integers(dtype: torch.dtype, cache: TeacherCache) -> None:
    assert torch.equal(
        cache[torch.tensor([7], dtype=dtype)]["full"], cache[torch.tensor([7])]["full"]
    )


def test_an_empty_index_gives_no_rows(cache: TeacherCache) -> None:
    found = cache[torch.tensor([], dtype=torch.long)]
    assert {view: logits.shape for view, logits in found.items()} == dict.fromkeys(
        ("full", "image", "text"), (0, 4)
    )


def test_what_is_read_belongs_to_the_reader(cache: TeacherCache) -> None:
    rows = torch.arange(10)
    before = cache[rows]["full"].clone()
    cache[rows]["full"].zero_()
    assert torch.equal(cache[rows]["full"], before)


def test_a_cache_says_what_it_is(cache: TeacherCache) -> None:
    assert cache.fingerprint == "v1"
    assert len(cache) == 10
    for part in ("TeacherCache", str(cache.path), "('full', 'image', 'text')", "rows=10"):
        assert part in repr(cache)


# --- the teacher while it is built


@pytest.mark.parametrize("index", ["index", "row"])
def test_the_teacher_is_not_given_the_index(index: str, tmp_path: Path) -> None:
    data, seen = make_data(4), []

    def teacher(**batch: Tensor) -> Tensor:
        seen.append(set(batch))
        return batch["pixels"]

    batches = [rows_of(data, [3, 1, 0, 2], index)]
    cache = TeacherCache.build(teacher, make_views(), batches, tmp_path, index=index)
    assert seen == [{"pixels", "tokens"}]
    torch.testing.assert_close(
        cache[torch.arange(4)]["full"], data["pixels"], rtol=2**-11, atol=2**-25
    )


class Modes(nn.Module):
    """Writes down how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Dropout())])
        self.weight = nn.Parameter(torch.ones(1))
        self.called: list[tuple[bool, bool]] = []

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        logits = pixels * self.weight
        training = any(module.training for module in self.modules())
        self.called.append((training, logits.requires_grad))
        return logits


@pytest.mark.parametrize("fails", [False, True])
def test_the_teacher_is_in_evaluation_and_comes_back_as_it_was(fails: bool, tmp_path: Path) -> None:
    teacher = Modes()
    teacher.parts[1][0].eval()
    before = {name: module.training for name, module in teacher.named_modules()}
    loader: list[Any] = [make_data(3), *(["no batch"] if fails else [])]
    if fails:
        with pytest.raises(TypeError):
            TeacherCache.build(teacher, make_views(), loader, tmp_path)
    else:
        TeacherCache.build(teacher, make_views(), loader, tmp_path)
    assert teacher.called == [(False, False)]
    assert {name: module.training for name, module in teacher.named_modules()} == before


# --- opened elsewhere


PREAMBLE = (
    "import os, signal, sys, torch; from msdlosses import Fill, ModalityViews, TeacherCache\n"
)

READ = """
cache = TeacherCache.open(sys.argv[1], fingerprint="v1")
print(cache[torch.tensor([9, 2])]["text"].tolist())
"""

DIE = """
views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0.0))
def loader():
    yield {"pixels": torch.ones(3, 4), "tokens": torch.ones(3, 1)}
    os._exit(7)  # as if killed
TeacherCache.build(lambda pixels, tokens: pixels, views, loader(), sys.argv[1])
"""


def run(script: str, path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PREAMBLE + script, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_another_process_opens_it(cache: TeacherCache) -> None:
    done = run(READ, cache.path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == cache[torch.tensor([9, 2])]["text"].tolist()


class Counting(nn.Module):
    """Writes down which samples it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        self.seen += pixels[:, 0].tolist()
        return pixels


def numbered(*rows: int) -> Batch:
    pixels = torch.tensor([[float(row), -1.0] for row in rows])
    return {"index": torch.tensor(rows), "pixels": pixels, "tokens": torch.zeros(len(rows), 1)}


KILL = """
def loader():
    for rows in ([5, 1], [0, 3], [2, 7]):
        pixels = torch.tensor([[float(row), -1.0] for row in rows])
        yield {"index": torch.tensor(rows), "pixels": pixels, "tokens": torch.zeros(2, 1)}
    os.kill(os.getpid(), signal.SIGKILL)
views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0.0))
TeacherCache.build(
    lambda pixels, tokens: pixels, views, loader(), sys.argv[1], fingerprint="v1"
)
"""


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A build of six samples of which the last batch was under way."""
    assert run(KILL, tmp_path).returncode == -signal.SIGKILL
    return tmp_path


def assert_numbered(cache: TeacherCache, rows: list[int]) -> None:
    expected = torch.tensor([[float(row), -1.0] for row in rows])
    assert torch.equal(cache[torch.tensor(rows)]["full"], expected)


def tear(folder: Path) -> None:
    """What a kill between two writes leaves."""
    with (folder / "0000-0000.records").open("ab") as file:
        file.write(b"half a record"[:7])


@pytest.mark.parametrize("damage", [lambda folder: None, tear], ids=["whole", "torn"])
def test_a_build_that_was_killed_goes_on_where_it_stopped(
    damage: Callable[[Path], None], killed: Path
) -> None:
    damage(killed)
    teacher = Counting()
    loader = [numbered(5, 1), numbered(0, 3), numbered(2, 4), numbered(6)]
    views = make_views(views_per_forward=3)
    cache = TeacherCache.build(teacher, views, loader, killed, fingerprint="v1")
    assert teacher.seen == [2, 4, 2, 4, 0, 0, 6, 6, 0]  # full and text show the pixels
    assert_numbered(cache, [*range(7)])


def test_a_build_that_was_killed_takes_other_batches_when_it_goes_on(killed: Path) -> None:
    teacher = Counting()
    loader = [numbered(3, 6, 0), numbered(7, 5), numbered(2)]
    cache = TeacherCache.build(teacher, make_views(), loader, killed, fingerprint="v1")
    assert_numbered(cache, [0, 1, 2, 3, 5, 6, 7])  # 1 comes from the first build
    assert set(teacher.seen) == {3, 6, 0, 7, 5, 2}


@pytest.mark.parametrize(
    "other",
    [
        {"fingerprint": "v2"},
        {"fingerprint": None},
        {"fingerprint": "v1", "views": ("full", "image")},
        {"fingerprint": "v1", "top_k": 1},
    ],
    ids=str,
)
def test_nothing_is_kept_of_another_build(other: dict[str, Any], killed: Path) -> None:
    teacher, views = Counting(), make_views(views=other.pop("views", None))
    cache = TeacherCache.build(teacher, views, [numbered(5, 1)], killed, **other)
    assert teacher.seen
    with pytest.raises(IndexError, match=r"written, got 3"):
        cache[torch.tensor([3])]


def test_a_build_that_was_killed_is_no_cache_and_is_built_anew(
    teacher: Teacher, tmp_path: Path
) -> None:
    assert run(DIE, tmp_path).returncode == 7
    assert any(tmp_path.iterdir())
    assert_unfinished_and_rebuilt(teacher, tmp_path)


def assert_unfinished_and_rebuilt(teacher: Teacher, path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Expected a finished cache"):
        TeacherCache.open(path)
    data, views = make_data(5), make_views()
    cache = TeacherCache.build(teacher, views, [data], path)
    assert_rounded(cache[torch.arange(5)], views(teacher, data))


@pytest.mark.parametrize("good", [0, 1, 3])
def test_a_build_that_failed_is_no_cache_and_is_built_anew(
    good: int, teacher: Teacher, tmp_path: Path
) -> None:
    def loader() -> Iterator[Batch]:
        for _ in range(good):
            yield make_data(20)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        TeacherCache.build(teacher, make_views(views=("text", "full")), loader(), tmp_path)
    assert_unfinished_and_rebuilt(teacher, tmp_path)


class Cached(Dataset[Tensor]):
    def __init__(self, cache: TeacherCache) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, i: int) -> Tensor:
        return self.cache[torch.tensor([i])]["image"][0]


def test_workers_of_a_dataloader_read_it(cache: TeacherCache) -> None:
    batches = list(DataLoader(Cached(cache), batch_size=3, num_workers=2))
    assert torch.equal(torch.cat(batches), cache[torch.arange(10)]["image"])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_read_the_same_files(
    duplicate: Callable[[TeacherCache], TeacherCache], cache: TeacherCache
) -> None:
    other = duplicate(cache)
    assert other.fingerprint == "v1"
    rows = torch.tensor([4, 4, 1])
    for view, logits in cache[rows].items():
        assert torch.equal(other[rows][view], logits)


def test_a_pickle_is_as_small_as_the_path(teacher: Teacher, tmp_path: Path) -> None:
    cache = TeacherCache.build(teacher, make_views(), [make_data(5000)], tmp_path)
    assert len(pickle.dumps(cache)) < 500


def test_a_moved_folder_is_still_a_cache(cache: TeacherCache, tmp_path: Path) -> None:
    expected = cache[torch.arange(10)]["full"]
    shutil.copytree(cache.path, tmp_path / "elsewhere")
    moved = TeacherCache.open(str(tmp_path / "elsewhere"))
    assert torch.equal(moved[torch.arange(10)]["full"], expected)


def test_a_path_of_folders_that_do_not_exist(teacher: Teacher, tmp_path: Path) -> None:
    TeacherCache.build(teacher, make_views(), [make_data(2)], str(tmp_path / "a" / "b"))
    assert len(TeacherCache.open(tmp_path / "a" / "b")) == 2


# --- large ones


@given(data=st.data())
def test_many_shards_read_like_one(data: st.DataObject) -> None:
    rows = data.draw(st.permutations(range(30)))
    read = data.draw(st.lists(st.integers(0, 29), max_size=40))
    samples, teacher, views = make_data(30), Teacher(), make_views()
    batches = [rows_of(samples, rows[i : i + 4]) for i in range(0, 30, 4)]
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_shards, "SHARD", data.draw(st.sampled_from([1, 100, 200])))
        cache = TeacherCache.build(teacher, views, batches, folder)
        assert len([*cache.path.glob("*.records")]) > 2
        assert_rounded(
            cache[torch.tensor(read, dtype=torch.long)],
            views(teacher, rows_of(samples, read, None)),
        )


RANKS = """
from torch import distributed
from torch.utils.data import DataLoader, Dataset, DistributedSampler

class Samples(Dataset):
    def __len__(self):
        return 9

    def __getitem__(self, i):
        return {"index": i, "pixels": torch.tensor([float(i), -1.0]), "tokens": torch.zeros(1)}

def teacher(pixels, tokens):
    return pixels

distributed.init_process_group("gloo")
views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0.0))
loader = DataLoader(Samples(), batch_size=2, sampler=DistributedSampler(Samples()))
cache = TeacherCache.build(teacher, views, loader, sys.argv[1], fingerprint="v1")
assert cache[torch.arange(9)]["full"][:, 0].tolist() == [*range(9)]
refused = 0
try:
    TeacherCache.build(teacher, views, loader, sys.argv[1])
except FileExistsError:
    refused += 1
batch = {"pixels": torch.ones(2, 2), "tokens": torch.zeros(2, 1)}
try:
    TeacherCache.build(teacher, views, [batch], sys.argv[1] + "-unordered")
except KeyError as error:
    refused += "Expected the batch to hold `index`" in str(error)
assert refused == 2
distributed.destroy_process_group()
"""


def torchrun(script: str, folder: Path, path: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "script.py"
    file.write_text(PREAMBLE + script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(file), str(path)]
    path_of_package = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=path_of_package)


def test_several_processes_finish_what_one_has_begun(killed: Path, tmp_path: Path) -> None:
    """The sampler gives one sample of nine to both, so that their parts are of one size."""
    done = torchrun(RANKS, tmp_path, killed)
    assert done.returncode == 0, done.stderr
    cache = TeacherCache.open(killed, fingerprint="v1")
    assert_numbered(cache, [*range(9)])
    assert {path.name[:4] for path in killed.glob("*.records")} == {"0000", "0001"}


def test_a_collate_function_reads_it_in_the_workers(cache: TeacherCache) -> None:
    def collate(rows: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.tensor(rows), cache[torch.tensor(rows)]

    for rows, logits in DataLoader(range(10), 4, num_workers=2, collate_fn=collate):
        for view, values in cache[rows].items():
            assert torch.equal(logits[view], values)


# --- the largest logits alone


@pytest.mark.parametrize("shape", [(6, 9), (4, 3, 9)], ids=str)
def test_the_largest_are_kept_and_the_rest_shares_what_it_has(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    logits = 5 * torch.randn(shape)
    cache = TeacherCache.build(passed_on, make_views(), logits_loader(logits), tmp_path, top_k=3)
    found = cache[torch.arange(len(logits))]["full"]
    assert found.shape == shape
    exact, read = logits.softmax(-1), found.softmax(-1)
    largest = exact.topk(3).indices
    torch.testing.assert_close(
        found.gather(-1, largest), logits.topk(3).values, rtol=2**-11, atol=0
    )
    torch.testing.assert_close(
        read.gather(-1, largest), exact.gather(-1, largest), rtol=2e-2, atol=0
    )
    others = read.scatter(-1, largest, 0.0)
    torch.testing.assert_close(
        others.sum(-1), exact.scatter(-1, largest, 0.0).sum(-1), rtol=2e-2, atol=0
    )
    assert all(len(row.unique()) == 2 for row in others.flatten(0, -2))


def test_a_cache_of_the_largest_is_small_and_opened_anew(tmp_path: Path) -> None:
    logits = torch.randn(50, 1000)
    cache = TeacherCache.build(passed_on, make_views(), logits_loader(logits), tmp_path, top_k=8)
    (records,) = tmp_path.glob("*.records")
    assert records.stat().st_size <= 4096 + 50 * 3 * (8 * (2 + 4) + 2)
    rows = torch.tensor([49, 0])
    assert torch.equal(TeacherCache.open(tmp_path)[rows]["full"], cache[rows]["full"])


@pytest.mark.parametrize("view", ["full", "image"])
def test_with_all_but_one_class_nothing_is_lost(view: str, tmp_path: Path) -> None:
    logits = torch.randn(20, 7)
    cache = TeacherCache.build(passed_on, make_views(), logits_loader(logits), tmp_path, top_k=6)
    torch.testing.assert_close(cache[torch.arange(20)][view], logits, rtol=2**-11, atol=2**-20)


@pytest.mark.parametrize(
    ("top_k", "kind", "message"),
    [
        (0, ValueError, "`top_k` of at least 1, got 0"),
        (2.0, TypeError, "`top_k` to be an integer, got float"),
        (4, ValueError, r"more classes than `top_k` = 4 in `full`, got .* \(3, 4\)"),
    ],
)
def test_a_number_of_largest_that_can_not_be(
    top_k: Any, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=rf"Expected {message}"):
        TeacherCache.build(
            passed_on,
            make_views(),
            of_logits([1.0] * 4, [2.0] * 4, [0.0] * 4),
            tmp_path,
            top_k=top_k,
        )


# --- files that are not of this cache


def test_a_finished_cache_is_not_overwritten(cache: TeacherCache, teacher: Teacher) -> None:
    before = cache[torch.arange(10)]["full"]
    with pytest.raises(FileExistsError, match="got a finished one: open it"):
        TeacherCache.build(teacher, make_views(), [make_data(3)], cache.path)
    assert torch.equal(TeacherCache.open(cache.path)[torch.arange(10)]["full"], before)


@pytest.mark.parametrize("kept", ["v1", None])
@pytest.mark.parametrize("asked", ["v1", "v2", None])
def test_the_fingerprint_is_compared(
    kept: str | None, asked: str | None, teacher: Teacher, tmp_path: Path
) -> None:
    TeacherCache.build(teacher, make_views(), [make_data(2)], tmp_path, fingerprint=kept)
    if asked in (kept, None):
        assert TeacherCache.open(tmp_path, fingerprint=asked).fingerprint == kept
        return
    with pytest.raises(ValueError, match=rf"fingerprint '{asked}' .* got {kept!r}"):
        TeacherCache.open(tmp_path, fingerprint=asked)


def data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != MANIFEST)


def cut(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path, _: Path) -> None:
    path.write_bytes(b"")


def zero(path: Path, _: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def exchange(path: Path, other: Path) -> None:
    shutil.copy(other / path.name, path)


def remove(path: Path, _: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [cut, lengthen, empty, zero, exchange, remove])
def test_a_damaged_or_foreign_file_is_refused(
    damage: Callable[[Path, Path], None], cache: TeacherCache, teacher: Teacher, tmp_path: Path
) -> None:
    other = TeacherCache.build(teacher, make_views(), [make_data(10)], tmp_path / "other").path
    names = [path.name for path in data_files(cache.path)]
    assert names == ["0000-0000.records", "places.i8"]
    for name in names:
        folder = tmp_path / name
        shutil.copytree(cache.path, folder)
        damage(folder / name, other)
        with pytest.raises(ValueError, match="Expected ") as error:
            TeacherCache.open(folder)
        assert str(folder / name) in str(error.value)


@pytest.mark.parametrize("folder", [".", "missing"])
def test_no_cache_there(folder: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"got no manifest.json: build it first"):
        TeacherCache.open(tmp_path / folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": "another 3", "rows": 10}', "\udcff\udcfe"]
)
def test_a_manifest_that_is_none(text: str, cache: TeacherCache) -> None:
    (cache.path / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="Expected a manifest"):
        TeacherCache.open(cache.path)


@pytest.mark.parametrize("asked", [None, "v1"])
def test_a_manifest_that_lacks_something(asked: str | None, cache: TeacherCache) -> None:
    path = cache.path / MANIFEST
    whole = json.loads(path.read_text())
    for key in set(whole) - {"format"}:
        path.write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
        with pytest.raises(ValueError, match="Expected a") as error:
            TeacherCache.open(cache.path, fingerprint=asked)
        assert "KeyError" not in str(error.value)
    path.write_text(json.dumps({**whole, "views": {"full": 4}}))
    with pytest.raises(ValueError, match="Expected a whole manifest"):
        TeacherCache.open(cache.path)


# --- what may not be read


@pytest.mark.parametrize(
    ("index", "kind", "message"),
    [
        (torch.tensor([0, 10]), IndexError, r"\[0, 10\), got 10"),
        (torch.tensor([3, -1]), IndexError, r"\[0, 10\), got -1"),
        (torch.tensor([1.0]), TypeError, r"integers, got float32 \(1,\)"),
        (torch.ones(10, dtype=torch.bool), TypeError, r"integers, got bool \(10,\)"),
        (torch.tensor([1j]), TypeError, r"integers, got complex64 \(1,\)"),
        (torch.tensor([]), TypeError, r"integers, got float32 \(0,\)"),
        (torch.tensor([[0, 1]]), ValueError, r"shape \(N,\), got \(1, 2\)"),
        (torch.tensor(3), ValueError, r"shape \(N,\), got \(\)"),
        ([0, 1], TypeError, "integers, got list"),
        (3, TypeError, "integers, got int"),
        (slice(0, 2), TypeError, "integers, got slice"),
    ],
)
def test_an_index_that_says_nothing(
    index: Any, kind: type[Exception], message: str, cache: TeacherCache
) -> None:
    with pytest.raises(kind, match=rf"Expected `index` .*{message}"):
        cache[index]


# --- what may not be built


def with_index(index: Any, size: int = 3) -> Any:
    return [{**make_data(size), "index": index}]


def of_logits(*rows: list[float]) -> Any:
    return logits_loader(torch.tensor(rows))


def sequences(*lengths: int) -> Any:
    return [{"pixels": torch.rand(2, length, 3), "tokens": torch.zeros(2, 1)} for length in lengths]


BUILDS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "NaN": (lambda: of_logits([1.0], [torch.nan]), ValueError, "numbers, got NaN in `full`"),
    "too large": (
        lambda: of_logits([-torch.inf, 70000.0]),
        ValueError,
        "within 65504.*got 70000 in `full`",
    ),
    "too small": (lambda: of_logits([-1e9]), ValueError, "within 65504.*got -1e[+]09"),
    "infinite": (lambda: of_logits([torch.inf]), ValueError, "within 65504.*got inf"),
    "lengths": (
        lambda: sequences(5, 6),
        ValueError,
        r"shape \(5, 3\) for `full`, as before, got \(6, 3\)",
    ),
    "twice in a batch": (
        lambda: with_index(torch.tensor([4, 1, 4])),
        ValueError,
        "each index once, got 4 again",
    ),
    "twice in all": (
        lambda: with_index(torch.arange(3)) + with_index(torch.tensor([5, 1, 7])),
        ValueError,
        "each index once, got 1 again",
    ),
    "negative": (
        lambda: with_index(torch.tensor([0, -1, 2])),
        IndexError,
        "`index` of 0 or more, got -1",
    ),
    "float": (lambda: with_index(torch.rand(3)), TypeError, r"integers, got float32 \(3,\)"),
    "bool": (lambda: with_index(torch.ones(3).bool()), TypeError, r"integers, got bool \(3,\)"),
    "list": (lambda: with_index([0, 1, 2]), TypeError, "integers, got list"),
    "2-D": (lambda: with_index(torch.zeros(3, 1).long()), ValueError, r"\(3,\), got \(3, 1\)"),
    "short": (lambda: with_index(torch.arange(2)), ValueError, r"\(3,\), got \(2,\)"),
    "some": (
        lambda: [*with_index(torch.arange(3)), make_data(3)],
        KeyError,
        "`index` in all batches or in none",
    ),
    "empty loader": (lambda: [], ValueError, "samples to build a cache of, got none"),
    "empty batches": (lambda: [make_data(0)] * 2, ValueError, "samples .* got none"),
    "number": (lambda: 3, TypeError, "iterable of batches, got int"),
    "tensors": (lambda: torch.rand(3, 5), TypeError, "each batch to be a mapping, got float32"),
}


@pytest.mark.parametrize("name", BUILDS)
def test_what_can_not_be_kept_is_refused(name: str, tmp_path: Path) -> None:
    loader, kind, message = BUILDS[name]
    with pytest.raises(kind, match=rf"Expected .*{message}"):
        TeacherCache.build(passed_on, make_views(), loader(), tmp_path)
    with pytest.raises(FileNotFoundError):
        TeacherCache.open(tmp_path)


def test_a_masker_that_takes_values_of_other_samples_is_refused(tmp_path: Path) -> None:
    views = ModalityViews(image=Shuffle("pixels"), text=Fill(tokens=0.0))
    with pytest.raises(ValueError, match=r"Expected maskers .* got Shuffle"):
        TeacherCache.build(Teacher(), views, [make_data(3)], tmp_path)


def test_views_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Expected `views` to be a ModalityViews, got tuple"):
        TeacherCache.build(Teacher(), ("full", "text"), [make_data(3)], tmp_path)


def test_an_index_that_was_named_but_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"hold `row`, got .*`pixels`"):
        TeacherCache.build(passed_on, make_views(), [make_data(3)], tmp_path, index="row")
