"""The recipes in examples/configs: sections of commands, and numbers that say where they are from."""

import re
from pathlib import Path

import pytest
import yaml

from neds_hf.models import NEDSConfig

FOLDER = Path(__file__).resolve().parents[1] / "examples/configs"
GROUPS = "steinmetz_regions.yaml"  # acronyms to classes for `neds regions`, no recipe
FILES = sorted(file for file in FOLDER.glob("*.yaml") if file.name != GROUPS)
EACH_FILE = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def scalars(node: yaml.Node) -> list[yaml.ScalarNode]:
    """All values of a document, without the keys."""
    if isinstance(node, yaml.MappingNode):
        return [scalar for _, value in node.value for scalar in scalars(value)]
    if isinstance(node, yaml.SequenceNode):
        return [scalar for value in node.value for scalar in scalars(value)]
    return [node]


def test_every_recipe_is_there():
    assert [file.stem for file in FILES] == [
        "finetuning",
        "published_code",
        "search",
        "seventy_four_sessions",
        "single_session",
        "ten_sessions",
    ]


@EACH_FILE
def test_every_section_is_of_a_command(file):
    """What is in them, the commands look at."""
    assert set(yaml.safe_load(file.read_text())) <= {"build", "pretrain", "finetune", "search"}


@EACH_FILE
def test_a_comment_beside_every_number_says_where_it_is_from(file):
    text = file.read_text()
    lines = text.splitlines()
    numbers = [node for node in scalars(yaml.compose(text)) if re.search(r"\d", node.value)]
    assert numbers
    for node in numbers:
        _, mark, comment = lines[node.start_mark.line].partition(" # ")
        assert mark and re.search(r"[a-z]{3}", comment), f"{file.name}, line {node.start_mark.line + 1}"


@EACH_FILE
def test_numbers_are_numbers_for_any_yaml_reader(file):
    """`2e-4`, without a dot, is text in YAML 1.1."""
    words = [node.value for node in scalars(yaml.compose(file.read_text())) if node.tag.endswith(":str")]
    assert [word for word in words if re.fullmatch(r"[\d.e+-]+", word)] == []


def test_what_a_search_draws_is_not_fixed():
    content = yaml.safe_load((FOLDER / "search.yaml").read_text())
    for command in ("pretrain", "finetune"):
        assert not set(content["search"][command]["ranges"]) & set(content[command])


def test_configurations_of_the_recipes_exist():
    for file in FILES:
        section = yaml.safe_load(file.read_text()).get("pretrain")
        if section is not None:
            settings = {"session_ids": ["a"], "unit_counts": [3], **section.get("set", {})}
            config = NEDSConfig.from_preset(section["preset"], **settings)
            assert config.num_hidden_layers == (22 if file.stem == "seventy_four_sessions" else 5)


def test_the_published_schemes_are_five_equally_likely():
    content = yaml.safe_load((FOLDER / "published_code.yaml").read_text())
    for command in ("pretrain", "finetune"):
        weights = content[command]["set"]["scheme_weights"]
        five = [
            weights["encoding"],
            weights["decoding"],
            *[weights["within_modality"] / 2] * 2,
            weights["cross_modal"],
        ]
        assert five == [1, 1, 1, 1, 1]
