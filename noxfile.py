"""The checks that the workflows run, each in an environment of its own."""

import os

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
PROJECT = nox.project.load_toml("pyproject.toml")


def group(name: str) -> tuple[str, ...]:
    """Return the requirements of a dependency group."""
    return nox.project.dependency_groups(PROJECT, name)


@nox.session
@nox.parametrize("torch", ["torch==2.6.0", "torch"], ids=["oldest", "newest"])
def tests(session: nox.Session, torch: str) -> None:
    """Run the tests on the oldest and on the newest supported PyTorch."""
    os.environ.pop("PIP_CONSTRAINT", None)  # it would fix the version of torch
    session.install(torch)
    session.install(".[test]")
    session.run("python", "-m", "pytest", "-n", "auto", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and types."""
    session.install("-e", ".[study,test]", *group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, with warnings as errors."""
    session.install(".", *group("docs"))
    session.run("sphinx-build", "-W", "-n", "docs", "docs/_build")


@nox.session
def package(session: nox.Session) -> None:
    """Build the archives and use the wheel."""
    session.install(*group("package"))
    session.run("bash", ".ci/package", "dist", external=True)
