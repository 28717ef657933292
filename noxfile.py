"""The checks, each in an environment of its own, as the workflows run them."""

import os

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
PROJECT = nox.project.load_toml("pyproject.toml")


def group(name: str) -> tuple[str, ...]:
    """What a dependency group asks for."""
    return nox.project.dependency_groups(PROJECT, name)


@nox.session
@nox.parametrize("torch", ["torch==2.6.0", "torch"], ids=["oldest", "newest"])
def tests(session: nox.Session, torch: str) -> None:
    """The whole suite, on the oldest and on the newest PyTorch that the project admits."""
    os.environ.pop("PIP_CONSTRAINT", None)  # it would hold torch at one version
    session.install(torch)
    session.install(".[test]")
    session.run("python", "-m", "pytest", "-n", "auto", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and types."""
    session.install("-e", ".", *group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, warnings as errors."""
    session.install(".", *group("docs"))
    session.run("sphinx-build", "-W", "-n", "docs", "docs/_build")


@nox.session
def package(session: nox.Session) -> None:
    """Wheel and sdist, and the tests against the wheel."""
    session.install(*group("package"))
    session.run("bash", ".ci/package", "dist", external=True)
