"""Options and fixtures every test shares: conformance data, golden texts, the golden-text comparison."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

_ROOT = Path(__file__).parent.parent

# Every test compiles what it says it does; child processes inherit this.
os.environ["NEURONX_CACHE_DIR"] = ""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--conformance",
        type=Path,
        default=_ROOT / ".." / "shared" / "conformance",
        help="directory with the StableHLO and Shardy test programs; without it, what needs it skips",
    )
    parser.addoption(
        "--all-shardings",
        action="store_true",
        help="each StableHLO program under all twelve random shardings",
    )
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the expected texts under tests/mlir"
    )


@pytest.fixture(scope="session")
def conformance(request: pytest.FixtureRequest) -> Path:
    """The directory of the conformance data; skips, saying so, where there is none."""
    path = request.config.getoption("--conformance").resolve()
    if not path.is_dir():
        pytest.skip(f"no conformance data at {path} (--conformance DIR)")
    return path


@pytest.fixture(scope="session")
def spare_cores() -> int:
    """How many processes a test may start: this one's share of the machine beside others of pytest-xdist."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden(name, text)`` compares with ``tests/mlir/<name>``, or rewrites it with ``--update-golden``."""

    def compare(name: str, text: str) -> None:
        path = _ROOT / "tests" / "mlir" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"no expected text {path.name}: run pytest --update-golden and read it"
        assert text == path.read_text(), f"{name} differs: read the change, then pytest --update-golden"

    return compare


@pytest.fixture
def rng(record_property: Callable[[str, object], None]) -> np.random.Generator:
    """Fresh random numbers on every run; the seed is printed where a test fails."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    record_property("seed", seed)
    print(f"rng seed {seed}")
    return np.random.default_rng(seed)
