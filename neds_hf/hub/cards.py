"""The card of a model folder."""

from neds_hf.cards.model import write_model_card

__all__ = ["write_model_card"]
