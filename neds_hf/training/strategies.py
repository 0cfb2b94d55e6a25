"""What fine-tuning to new animals trains: rows alone, everything, one layer after the other, or an adapter."""

import math

from transformers import PreTrainedModel, TrainerCallback

from neds_hf.errors import NEDSError, require
from neds_hf.models.modeling_neds import NEDSModel, Table

# How the names begin of the parameters that a strategy trains, in the end.
STRATEGIES = {
    "session": ("unit_", "session_"),  # rows of units, and what is a session's own
    "gradual": ("",),
    "full": ("",),
    "lora": (),
}
LORA_RANK = 8


def freeze(model: NEDSModel, strategy: str) -> None:
    """Let training change only what the strategy names (`STRATEGIES`)."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(STRATEGIES[strategy]))


class GradualUnfreezing(TrainerCallback):
    """Over the first half of the epochs, what is trained grows; in the second it is everything.

    First the rows of units and what is a session's own, then the encoder's layers from the top down, with the
    first of them the readouts, then the rest: what makes tokens. What is trained depends on the epoch alone, so
    that a run that was cut off goes on as it would have. The optimizer must know all parameters from the start.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if state.num_train_epochs < 2:
            raise NEDSError("--strategy gradual needs at least 2 epochs: for the rows, and for everything")

    def on_epoch_begin(self, args, state, control, model=None, **kwargs):
        layers = model.config.num_hidden_layers
        # 0: rows; 1 to `layers`: as many layers; `layers` + 1: everything.
        stage = math.ceil((layers + 1) * 2 * int(state.epoch) / state.num_train_epochs)
        trained = STRATEGIES["session"]
        if stage > 0:
            trained += ("encoder.norm", "spike_unpatch", "behavior_readout")
        trained += tuple(f"encoder.blocks.{layer}." for layer in range(layers - stage, layers))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(stage > layers or name.startswith(trained))


def with_adapter(model: NEDSModel, sessions: list[str]) -> PreTrainedModel:
    """The model with low-rank updates of the encoder's matrices and the rows of these sessions to train (peft).

    All else is frozen; `save_pretrained` writes an adapter with only what is trained.

    Raises:
        NEDSError: peft is not installed.
    """
    require("--strategy lora", "lora", "peft")
    from peft import LoraConfig, get_peft_model

    units = [model.unit_rows(session) for session in sessions]
    rows = {
        "unit_": [row for of_session in units for row in range(of_session.start, of_session.stop)],
        "session_": [model.config.session_ids.index(session) for session in sessions],
    }
    tables = [name for name, module in model.named_modules() if isinstance(module, Table)]
    config = LoraConfig(
        r=LORA_RANK,
        lora_alpha=2 * LORA_RANK,
        target_modules=r"encoder\.blocks\..*_proj",
        trainable_token_indices={
            name: indices for name in tables for kind, indices in rows.items() if name.startswith(kind)
        },
    )
    return get_peft_model(model, config)
