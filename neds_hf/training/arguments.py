"""`TrainingArguments` with NEDS's defaults, and the command line of what trains."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from neds_hf.data.schema import SPLITS
from neds_hf.errors import NEDSError, one_line
from neds_hf.training.runs import is_whole

NOT_NEGATIVE = (
    "mixup",
    "learning_rate",
    "weight_decay",
    "unit_weight_decay",
    "adam_epsilon",
    "max_grad_norm",
    "dataloader_num_workers",
)
BATCH_SIZES = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
# What transformers takes and would not do, or would do wrongly, here.
UNSUPPORTED = {
    "label_smoothing_factor": "the labels of classes are smoothed by --set label_smoothing=VALUE",
    "auto_find_batch_size": "another batch is another training; fewer --per_device_train_batch_size with more "
    "--gradient_accumulation_steps are the same, in less memory",
    "dataloader_drop_last": "batches are whole in any case, unless all trials together do not fill one",
    "save_only_model": "a run that is cut off goes on from its checkpoints, which need the rest for it",
    "neftune_noise_alpha": "there is no vocabulary whose embeddings could get noise",
    "use_liger_kernel": "its kernels are of other models",
    "remove_unused_columns": "every column of a trial is used",
    "bf16_full_eval": "what is evaluated is the model as it is trained; --bf16 does both",
    "debug": "it takes no boolean masks; torch.autograd.set_detect_anomaly(True) finds what is no number",
    "fp16_full_eval": "what is evaluated is the model as it is trained; --fp16 does both",
}


@dataclass
class NEDSTrainingArguments(TrainingArguments):
    """All of `transformers.TrainingArguments`; the defaults below differ.

    The paper trains with AdamW, weight decay 0.01 and a one-cycle schedule with 15 % warm-up; `cosine` falls as
    that does, but warms up in a straight line, from 0. The model kept is the one with the best mean of the five
    metrics on validation, over the last five evaluations, unless that is trained on.
    """

    output_dir: str = field(metadata={"help": "Folder of the run and of the model.", "aliases": ["--output"]})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=0.01, metadata={"help": "Of the matrices."})
    unit_weight_decay: float = field(
        default=0.3,
        metadata={"help": "Of units' rows, in the steps in which trials of their session are seen."},
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=0.15, metadata={"help": "Share of the steps (<1), or steps."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Trials a step and process."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Trials an evaluation step."})
    num_train_epochs: float = field(default=100.0, metadata={"help": "Passes over the training trials."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate on validation."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept, besides the best."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the best checkpoint."})
    metric_for_best_model: str | None = field(
        default="eval_mean", metadata={"help": "What best means, averaged over the last five evaluations."}
    )
    greater_is_better: bool | None = field(
        default=None, metadata={"help": "Higher is better. Default: unless it is a loss."}
    )
    mixup: float = field(
        default=0.0,
        metadata={
            "help": "Mix every trial with another of its session, by shares of a beta distribution with this "
            "parameter; 0: never."
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention of transformers: sdpa, eager, flash_attention_2. Default: eager (written out) for "
            "--bf16 on a CPU, where it is the faster one, else sdpa."
        },
    )
    train_splits: list[str] = field(
        default_factory=lambda: ["train"],
        metadata={
            "help": "Splits to train on; with validation among them the last checkpoint is kept, not the best.",
            "choices": list(SPLITS),
        },
    )
    dataloader_num_workers: int = field(
        default_factory=lambda: 2 if torch.cuda.is_available() else 0,
        metadata={"help": "Processes that load batches. Default: 2 where there is a GPU, else none."},
    )
    dataloader_persistent_workers: bool = field(
        default=True, metadata={"help": "Keep these processes from epoch to epoch."}
    )
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Default: where there is a GPU."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={"help": "There are none: every batch has every modality, if only as missing."},
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs the columns."})
    report_to: None | str | list[str] = field(default="none", metadata={"help": "Loggers."})  # noqa: RUF036
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Log the last sound loss in place of one that is no number."}
    )
    push_to_hub: bool = field(
        default=False, metadata={"help": "Upload the folder, in one commit, when the run is finished."}
    )
    hub_model_id: str | None = field(
        default=None, metadata={"help": "USER/NAME of the repository. Default: the folder's name, yours."}
    )
    hub_strategy: str = field(
        default="end", metadata={"help": "A run is pushed at its end, never half of it."}
    )

    def __post_init__(self):
        for name in NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name} must be finite and not negative, but is {getattr(self, name)}")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 0 and below 1, not {getattr(self, name)}")
        for name in ("seed", "data_seed"):
            if not 0 <= (getattr(self, name) or 0) < 2**32:
                raise ValueError(f"--{name} must be from 0 to 2**32 - 1, not {getattr(self, name)}")
        if not 0 < self.num_train_epochs < math.inf:
            raise ValueError(f"--num_train_epochs must be finite and above 0, but is {self.num_train_epochs}")
        if self.max_steps < 1 and self.max_steps != -1:  # the default
            raise ValueError(f"--max_steps must be at least 1, not {self.max_steps}")
        for name, reason in UNSUPPORTED.items():
            if getattr(self, name):
                raise ValueError(f"--{name} cannot be used: {reason}")
        if self.train_sampling_strategy == "group_by_length":
            raise ValueError("--train_sampling_strategy group_by_length: all trials are of one length")
        if self.fp16 and not torch.accelerator.is_available():
            raise ValueError("--fp16 needs a GPU; --bf16 also works on a CPU")
        for name in BATCH_SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if (checkpoint := self.resume_from_checkpoint) and not is_whole(Path(checkpoint)):
            raise ValueError(
                f"--resume_from_checkpoint: {checkpoint} is no whole checkpoint; without this option a run goes "
                "on from its last one"
            )
        if "validation" in self.train_splits:
            self.eval_strategy, self.load_best_model_at_end = "no", False
        if self.greater_is_better is None and self.metric_for_best_model:
            self.greater_is_better = "loss" not in self.metric_for_best_model
        self.dataloader_persistent_workers &= self.dataloader_num_workers > 0
        # transformers refuses --bf16 without an accelerator, unless the CPU is asked for.
        self.use_cpu |= self.bf16 and not torch.accelerator.is_available()
        super().__post_init__()
        if self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
            mode = {"mode": "max" if self.greater_is_better else "min"}
            self.lr_scheduler_kwargs = mode | (self.lr_scheduler_kwargs or {})
        if self.optim_args and self.optim in ("adamw_torch", "adamw_torch_fused"):
            raise ValueError(
                f"--optim_args: {self.optim.value} takes none; its settings are --adam_beta1, --adam_beta2 and "
                "--adam_epsilon"
            )
        if self.fsdp and self.world_size == 1:
            raise ValueError(
                "--fsdp divides a model among several processes, as torchrun starts; this is one"
            )
        if missing := set(self.report_to) - set(available := get_available_reporting_integrations()):
            raise ValueError(
                f"--report_to: no {', '.join(sorted(missing))} is installed; loggers that are: "
                f"{', '.join(available) or 'none'}"
            )
        if self.attn_implementation is None:
            self.attn_implementation = "eager" if self.bf16 and self.device.type == "cpu" else "sdpa"


@dataclass
class FinetuningArguments(NEDSTrainingArguments):
    """The same for `neds finetune`: the defaults are what did best with all weights of models of recorded animals
    (RESULTS.md, New animals)."""

    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    num_train_epochs: float = field(default=60.0, metadata={"help": "Passes over the training trials."})
    unit_weight_decay: float = field(
        default=3.0,
        metadata={"help": "Of units' rows, in the steps in which trials of their session are seen."},
    )


def training_parser(
    kind: type, name: str, description: str, how: type[NEDSTrainingArguments] = NEDSTrainingArguments
) -> HfArgumentParser:
    """Parser of `neds NAME`: the options of the dataclass `kind`, and how to train."""
    return HfArgumentParser((kind, how), prog=f"neds {name}", description=description, allow_abbrev=False)


def parse_training_arguments(
    parser: HfArgumentParser, argv: list[str]
) -> tuple[object, NEDSTrainingArguments]:
    """The two that the parser was made for.

    Raises:
        NEDSError: An unknown argument, or training arguments that do not go together.
    """
    try:
        return parser.parse_args_into_dataclasses(args=argv)[:2]
    except (ValueError, OSError, ImportError) as error:
        raise NEDSError(one_line(error)) from error
