"""The tests on the oldest and on the newest PyTorch that the project admits."""

import os

import nox

nox.options.default_venv_backend = "venv"
GROUPS = nox.project.load_toml("pyproject.toml")


@nox.session
@nox.parametrize("torch", ["torch==2.6.0", "torch"])
def tests(session: nox.Session, torch: str) -> None:
    """The whole suite."""
    os.environ.pop("PIP_CONSTRAINT", None)  # it would hold torch at one version
    session.install(torch)
    session.install(".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and types."""
    session.install("-e", ".", *nox.project.dependency_groups(GROUPS, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, warnings as errors."""
    session.install(".", *nox.project.dependency_groups(GROUPS, "docs"))
    session.run("sphinx-build", "-W", "-n", "docs", "docs/_build")
