"""Every task of the project: `nox -s sweep | tests | lint | types | gpu`.

All but `lint` share one environment, `.nox/main`, made here because nox gives each session its own: torch takes longer to install than most
of them take to run, and several gigabytes on a GPU machine.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lint", "types"]

PROJECT = nox.project.load_toml("pyproject.toml")
MAIN = Path(".nox/main").absolute()
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
BIN = MAIN / ("Scripts" if sys.platform == "win32" else "bin")


def groups(*names: str) -> list[str]:
    return [line for name in names for line in nox.project.dependency_groups(PROJECT, name)]


def install(session: nox.Session, *names: str) -> None:
    """Dependency groups in the shared environment, and the project, editable, if its pyproject.toml is not what was installed last: that
    takes 5 s even where nothing changed. Python compiles modules when they are first imported: to compile all 16,000 files of the packages
    takes one core half a minute, and a run imports a fifth of them."""
    if not (BIN / "pip").exists():
        session.run(sys.executable, "-m", "venv", str(MAIN), external=True)
    present, installed = Path("pyproject.toml").read_text(), MAIN / "pyproject.toml"
    project = [] if installed.exists() and installed.read_text() == present else ["-e", "."]
    if wanted := [*project, *groups(*names)]:
        run(session, "python", "-m", "pip", "install", "--quiet", "--no-compile", *wanted)
    installed.write_text(present)


def run(session: nox.Session, program: str, *arguments: str) -> None:
    session.run(str(BIN / program), *arguments, external=True)


@nox.session(venv_backend="none")
def sweep(session: nox.Session) -> None:
    """The main job: a sweep of llama-3.1-8b bf16 on a GPU, of tiny-llama fp32 on a machine without one."""
    install(session)
    run(session, "trtllm-bench", "sweep", *session.posargs)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Every test that needs no GPU, a file at a time on each of two cores, in the files' order: the last are short, so both cores end at
    the same time. Without a browser, and outside CI, those of the dashboard in one are left out."""
    install(session, "test")
    chosen = "not gpu and not gpu2"
    if not (os.environ.get("CI") or os.environ.get("TRTLLM_BENCH_CHROMIUM") or any(map(shutil.which, BROWSERS))):
        session.warn("no Chromium here: the dashboard's browser tests are left out (apt-get install chromium brings them back)")
        chosen = "not gpu and not gpu2 and not browser"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run(session, "pytest", "-m", chosen, "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", *session.posargs)


@nox.session(venv_backend="none")
def gpu(session: nox.Session) -> None:
    """The tests that need a GPU, by a process for each core but at most 14 on it, since most of the time kernels compile; those that share
    an engine or many kernels by one of them. Fails on a machine without a GPU."""
    install(session, "test")
    workers = str(min(14, os.cpu_count() or 1))
    run(session, "pytest", "-m", "gpu", "-n", workers, "--dist", "loadgroup", "tests/gpu", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Format and lint, as CI demands them."""
    session.install(*groups("lint"))
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """mypy --strict over every package, by two processes."""
    install(session, "types")
    run(session, "mypy", "--num-workers", "2")
