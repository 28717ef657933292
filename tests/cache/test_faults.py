"""Faults at random places: afterwards there are right rows or an error, never wrong rows.

`--hypothesis-profile=thorough` runs many more of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cache_faults import (
    DAMAGE,
    ERRORS,
    FOREIGN,
    ORDER,
    OTHERS,
    RECIPES,
    Recipe,
    build_and_die,
    copy_folder,
    failing_writes,
    files_of,
    fill_disk,
    interrupt,
    others,
)
from hypothesis import event, given, settings
from hypothesis import strategies as st

from msdlosses import TeacherCache

positions = st.one_of(st.integers(-600, -1), st.integers(0, 2**16))  # from the end, or the start


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return RECIPES[request.param]


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recipe.build(tmp_path_factory.mktemp("finished") / "cache").path


@pytest.fixture(scope="module")
def interrupted(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of builds that were interrupted after 0, 1, 2, ... batches."""
    folders = [tmp_path_factory.mktemp("interrupted") for _ in range(5)]
    for batches, folder in enumerate(folders[:4]):
        interrupt(recipe, folder, batches)
    return folders[:4]


def damage(data: st.DataObject, folder: Path) -> None:
    """Damage one to three files, or remove them."""
    for _ in range(data.draw(st.integers(1, 3))):
        files = files_of(folder)
        if files:
            path = data.draw(st.sampled_from(files))
            kind = data.draw(st.sampled_from([*DAMAGE, "remove"]))
            event(kind)
            if kind == "remove":
                path.unlink()
            else:
                path.write_bytes(DAMAGE[kind](path.read_bytes(), data.draw(positions)))


def add_foreign_files(data: st.DataObject, folder: Path) -> dict[Path, bytes]:
    names = data.draw(st.sets(st.sampled_from([*FOREIGN])))
    foreign = {folder / name: FOREIGN[name] for name in names if not (folder / name).exists()}
    for path, content in foreign.items():
        path.write_bytes(content)
    return foreign


def assert_untouched(foreign: dict[Path, bytes]) -> None:
    assert {path: path.read_bytes() for path in foreign} == foreign


@contextmanager
def errors_name(folder: Path) -> Iterator[None]:
    """Allow errors that name the folder."""
    try:
        yield
    except ERRORS as error:
        event(type(error).__name__)
        if str(folder) not in str(error):
            raise


@given(data=st.data(), verify=st.booleans())
def test_damaged_cache_returns_right_rows_or_an_error(
    data: st.DataObject, verify: bool, recipe: Recipe, finished: Path
) -> None:
    with TemporaryDirectory() as temporary:
        folder = copy_folder(finished, Path(temporary))
        damage(data, folder)
        foreign = add_foreign_files(data, folder)
        with errors_name(folder):
            assert recipe.is_right(TeacherCache.open(folder, verify=verify))
        with errors_name(folder):
            assert recipe.is_right(recipe.build(folder))
        assert_untouched(foreign)


@given(data=st.data(), second=st.sampled_from(OTHERS), batches=st.integers(0, 3))
def test_damaged_build_is_resumed_right_or_not_at_all(
    data: st.DataObject, second: str, batches: int, recipe: Recipe, interrupted: list[Path]
) -> None:
    recipe = others(recipe)[second]
    with TemporaryDirectory() as temporary:
        folder = copy_folder(interrupted[batches], Path(temporary))
        if data.draw(st.booleans()):
            damage(data, folder)
        foreign = add_foreign_files(data, folder)
        with errors_name(folder):
            assert recipe.is_right(recipe.build(folder))
            assert recipe.is_right(TeacherCache.open(folder, verify=True))
        assert_untouched(foreign)


@given(sizes=st.lists(st.integers(0, 45_000), min_size=1, max_size=3))
def test_build_on_a_full_disk_can_be_resumed(sizes: list[int], recipe: Recipe) -> None:
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "cache"
        for size in sizes:
            with failing_writes(size, fill_disk), suppress(OSError):
                recipe.build(folder)
        with suppress(FileExistsError):  # the disk was large enough
            recipe.build(folder)
        assert recipe.is_right(TeacherCache.open(folder, verify=True))


@settings(max_examples=max(3, settings.default.max_examples // 12))
@given(size=st.integers(0, 45_000))
def test_killed_build_can_be_resumed(size: int, recipe: Recipe) -> None:
    processes = get_context("forkserver")
    processes.set_forkserver_preload(["cache_faults"])
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "cache"
        process = processes.Process(target=build_and_die, args=(str(folder), size, recipe))
        process.start()
        process.join()
        event(f"exit code {process.exitcode}")
        cache = TeacherCache.open(folder) if process.exitcode == 0 else recipe.build(folder)
        assert recipe.is_right(cache)


@given(second=st.sampled_from(OTHERS), batches=st.integers(0, len(ORDER) // 3 - 1))
def test_second_build_in_a_folder_fails_at_once(second: str, batches: int, recipe: Recipe) -> None:
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "cache"

        def loader() -> Iterator[Any]:
            for number, batch in enumerate(recipe.batches()):
                if number == batches:
                    with pytest.raises(FileExistsError, match="Another process is building"):
                        others(recipe)[second].build(folder)
                yield batch

        assert recipe.is_right(recipe.build(folder, loader()))
