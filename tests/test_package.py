"""What the package needs, what imports what, and that nothing about it is left undeclared."""

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from neds_hf.cli.main import COMMANDS, main

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "neds_hf"

# Folder to the folders that it may import from, besides `errors` (which imports none of them) and itself.
MAY_IMPORT = {
    "models": set(),
    "metrics": set(),
    "cards": set(),
    "data": {"models", "cards"},
    "training": {"models", "metrics", "cards", "data"},
    "analysis": {"models", "metrics", "data", "training"},
    "hub": {"models", "metrics", "cards", "data", "training"},
    "cli": {"models", "metrics", "data", "training", "analysis", "hub"},
}


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def imports(file: Path) -> set[str]:
    """Modules that a file imports, relative ones resolved."""
    tree = ast.parse(file.read_text())
    package = file.relative_to(REPOSITORY).parent.parts
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} if node.module else {f"{module}.{alias.name}" for alias in node.names}
    return found


# --- what it needs ---


def test_importing_the_package_loads_nothing_heavy():
    # Also by what converts, sends to the Hub and draws reports.
    what = "neds_hf, neds_hf.data.builder, neds_hf.data.arrays, neds_hf.cli.push, neds_hf.cli.report"
    loaded = set(run(f"import sys, {what}; print(*{{name.split('.')[0] for name in sys.modules}})").split())
    assert "datasets" in loaded
    heavy = {"torch", "transformers", "sklearn", "one", "iblatlas", "matplotlib", "jinja2"}
    assert loaded & heavy == set()


@pytest.fixture(scope="module")
def loaded():
    """What a process without the extras has loaded to open a dataset or a model, then to train, then in all."""
    blocked = ("one", "iblatlas", "iblutil", "matplotlib", "jinja2", "optuna", "peft", "ray")
    core = [
        *("models", "training.trainer", "data.collator", "data.builder", "data.alf"),
        *("metrics.functional", "metrics.sums", "analysis.baselines"),
        *(f"cli.{name}" for name in COMMANDS if name != "demo"),
    ]
    block = f"import sys; sys.modules |= dict.fromkeys({blocked})  # importing them raises\n"
    steps = (["training.sessions"], ["training.fit"], core)
    imports = ("\n".join(f"import neds_hf.{module}" for module in step) for step in steps)
    script = block + "".join(f"{step}\nprint(*sys.modules)\n" for step in imports)
    return [set(line.split()) for line in run(script).splitlines()]


def test_opening_a_dataset_loads_nothing_that_converts(loaded):
    """Half a second of every command that reads: scipy's filters, and what writes a dataset's card. A training
    only tells real sessions from simulated ones, which needs no filters either."""
    to_open, to_train, _ = loaded
    assert "neds_hf.data.trials" in to_open
    converts = {"neds_hf.data.storage", "neds_hf.data.folder", "neds_hf.data.alf", "scipy.signal"}
    assert converts.isdisjoint(to_open)
    assert "neds_hf.data.origin" in to_train and "scipy.signal" not in to_train


def test_the_core_needs_neither_one_nor_plotting(loaded):
    assert {f"neds_hf.cli.{name}" for name in COMMANDS} - loaded[-1] == {"neds_hf.cli.demo"}


def test_only_declared_packages_are_imported():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {Requirement(text).name.lower() for text in [*project["dependencies"], *extras["ibl"]]}
    declared |= {
        Requirement(text).name.lower()
        for name in ("report", "evaluate", "lora", "search", "ray")
        for text in extras[name]
    }
    names = {"one-api": "one", "pyyaml": "yaml", "scikit-learn": "sklearn"}
    allowed = {names.get(name, name) for name in declared} | {"neds_hf", *sys.stdlib_module_names}
    used = {module.split(".")[0] for file in PACKAGE.rglob("*.py") for module in imports(file)}
    assert used - allowed == set()


def test_everything_that_is_installed_with_the_package_is_pinned():
    """So that an installation of next year is that of today; torch brings its own GPU libraries, pinned by it."""
    lines = (REPOSITORY / "constraints.txt").read_text().split()
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    needed, queue, seen = {}, [("neds-hf", "dev")], set()
    while queue:
        name, extra = queue.pop()
        for text in distribution(name).requires or []:
            requirement = Requirement(text)
            key = canonicalize_name(requirement.name)
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            if key == "setuptools" or key.startswith(("nvidia-", "cuda-", "triton")):
                continue
            if key != "neds-hf":
                needed[key] = distribution(key).version.split("+")[0]
            new = {(key, extra) for extra in ("", *requirement.extras)} - seen
            seen |= new
            queue.extend(new)
    assert {name: pins.get(name) for name in needed} == needed


# --- what imports what ---


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_go_in_one_direction(folder):
    allowed = {"neds_hf.errors"} | {f"neds_hf.{name}" for name in (folder, *MAY_IMPORT[folder])}
    for file in (PACKAGE / folder).rglob("*.py"):
        ours = {module for module in imports(file) if module.split(".")[0] == "neds_hf"}
        parts = {".".join(module.split(".")[:2]) for module in ours}
        assert parts <= allowed, f"{file.relative_to(REPOSITORY)} imports {parts - allowed}"


def test_every_folder_has_its_place():
    folders = {file.parent.relative_to(PACKAGE).parts[0] for file in PACKAGE.glob("*/**/*.py")}
    assert folders == set(MAY_IMPORT)
    assert imports(PACKAGE / "errors.py") == {"importlib.util"}


def test_a_model_folder_needs_only_torch_transformers_numpy_and_itself():
    """What is in `models/` is copied beside the weights, flat, and loads there without this package."""
    allowed = {"torch", "transformers", "huggingface_hub", "numpy", *sys.stdlib_module_names}
    for file in (PACKAGE / "models").glob("*_neds.py"):
        for module in imports(file):
            if sibling := module.partition("neds_hf.models.")[2]:
                assert (PACKAGE / "models" / f"{sibling}.py").exists()
                assert f"from .{sibling} import" in file.read_text()  # relative, or it would not load there
            else:
                assert module.split(".")[0] in allowed, f"{file.name} imports {module}"


# --- commands ---


def test_every_command_has_a_file_a_row_and_an_example():
    files = {file.stem for file in (PACKAGE / "cli").glob("*.py")} - {"__init__", "main", "config", "console"}
    assert files == set(COMMANDS)
    for name in COMMANDS:
        example = (REPOSITORY / "examples" / f"{name}.py").read_text()
        assert f'run("{name}")' in example and len(example.splitlines()) <= 4


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_is_the_command(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(REPOSITORY / "examples" / f"{name}.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert f"usage: neds {name} " in shown and "``" not in shown


@pytest.mark.parametrize("place, message", [("folder", "is a folder"), ("file/x", "file is no folder")])
@pytest.mark.parametrize(
    "command",
    [
        "evaluate --model nowhere --dataset nowhere",
        "predict --model nowhere --dataset nowhere --task encoding",
        "report nowhere",
    ],
)
def test_an_output_that_cannot_be_written_is_said_before_anything_is_read(
    tmp_path, error_of, command, place, message
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    error = error_of(*command.split(), "--output", tmp_path / place)
    assert message in error and str(tmp_path / place) in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("argv, status", [([], 0), (["--help"], 0), (["fly"], 2)])
def test_neds_alone_lists_its_commands(argv, status, capsys):
    assert main(argv) == status
    shown = capsys.readouterr()
    for name in COMMANDS:
        assert re.search(rf"\b{name}\b", shown.out + shown.err)
