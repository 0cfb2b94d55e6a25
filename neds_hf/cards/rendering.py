"""Cards, the README of a repository on the Hub, from the Jinja2 templates in this folder."""

from collections.abc import Mapping

from huggingface_hub import CardData


def render(template: str, metadata: CardData, **values) -> str:
    """A card: metadata between two lines of dashes, and the text of a template.

    Args:
        template: File in this folder.
        metadata: For the Hub.
        values: What the template shows; it shows nothing else.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined  # not for `import neds_hf`

    environment = Environment(
        loader=PackageLoader("neds_hf", "cards"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{environment.get_template(template).render(values)}"


def origin_in_words(origins: Mapping[str, int]) -> str:
    """`origins` of `neds_hf.data.origin`, for the first line of a card."""
    known = [kind for kind in ("simulated", "real") if kind in origins]
    words = f"{' and '.join(known)} recordings" if known else "recordings"
    return words + " that do not say whether they are simulated or real" * ("unknown" in origins)
