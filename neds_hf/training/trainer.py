"""A `Trainer` that draws masks reproducibly, and evaluates by the paper's metrics.

Any other `Trainer` trains the model as well; this one adds:

- Masks, and what a trial is mixed with, depend on the seed, the step and the trial's place in the global batch
  only, so that processes, gradient accumulation and resuming do not change them.
- An epoch is a whole number of global batches: other random trials sit out in every epoch, at most one batch less
  one. Else the last step's trials would count more, and differently so on several processes.
- Evaluation encodes and decodes every trial and streams the metrics; only sums are gathered. The best checkpoint
  is the one with the best mean over the last `RECENT` evaluations.
- Units' rows have a weight decay of their own, and only in steps that see trials of their session: those of the
  sessions that a run does not train on stay what they were. Sessions' embeddings are not decayed.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import send_to_device
from huggingface_hub.errors import HTTPError
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader, RandomSampler, Sampler, Subset
from transformers import PreTrainedModel, ProgressCallback, Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from neds_hf.cards.model import write_model_card
from neds_hf.data.collator import ArrowTrials, NEDSCollator
from neds_hf.data.files import writing
from neds_hf.data.recordings import Recordings
from neds_hf.errors import NEDSError, one_line
from neds_hf.metrics.functional import mean_table
from neds_hf.models.masking_neds import num_uniform, sample_masks
from neds_hf.models.modeling_neds import Table
from neds_hf.models.processing_neds import NEDSProcessor
from neds_hf.training.arguments import NEDSTrainingArguments
from neds_hf.training.inference import score_batches, sums_of
from neds_hf.training.mixup import mix_trials

# On a few dozen trials the best of many single evaluations is mostly one that was lucky.
RECENT = 5
UNIT_ROWS = re.compile(r"\bunit_(embedding|readout)\b")  # also among the names of an adapter


def global_batch_size(args: NEDSTrainingArguments) -> int:
    """Trials of one optimizer step, over all processes."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


class Diverged(NEDSError):
    """The loss is no number any more, and nothing that follows would be."""


class OneLineProgress(ProgressCallback):
    """Progress bar that shows what the best checkpoint is chosen by, not every number of every session."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and "eval_mean" in (logs or {}):
            self.training_bar.set_postfix(validation_mean=f"{logs['eval_mean']:.3f}")


class NEDSTrainer(Trainer):
    """Train `NEDSModel` on the `train` split of `recordings`, evaluate on `validation`.

    `evaluate` returns, with the prefix `eval_`, every metric's mean over sessions, the losses, and the metrics
    of each session as `eval_<session>/<metric>`; these go to the loggers, not into `trainer_state.json`.

    Args:
        model: The model; knows all sessions of `recordings`.
        args: Where and how to train.
        processor: Of the model. Saved with it.
        recordings: What to train on.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: NEDSTrainingArguments,
        processor: NEDSProcessor,
        recordings: Recordings,
        **kwargs,
    ):
        train = ArrowTrials(recordings.split("train"))
        validation = (
            ArrowTrials(recordings.split("validation")) if "validation" in recordings.splits else None
        )
        super().__init__(
            model,
            args,
            data_collator=NEDSCollator(processor, recordings.features),
            train_dataset=train,
            eval_dataset=validation,
            **kwargs,
        )
        self.processor = processor
        sessions = train.dataset["session"][:].to_pandas()
        rows = sessions.groupby(sessions).indices
        self.trials_of_session = [rows.get(session, np.empty(0, int)) for session in processor.session_ids]
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(OneLineProgress)

    def train(self, *args, **kwargs) -> TrainOutput:
        self._mask_step, self._micro_step = -1, 0
        return super().train(*args, **kwargs)

    def init_hf_repo(self, token=None, private=None) -> None:
        try:
            super().init_hf_repo(token, private)
        except (HTTPError, OSError, ValueError) as error:
            raise NEDSError(f"--push_to_hub: no repository to push to: {one_line(error)}") from error

    def _save_checkpoint(self, *args, **kwargs) -> None:
        with writing(Path(self.args.output_dir)):
            super()._save_checkpoint(*args, **kwargs)

    def _save(self, output_dir=None, state_dict=None) -> None:
        kind = type(self.model)
        if isinstance(self.model, FSDPModule):  # a class of its own, whose code would be saved
            self.model.__class__ = kind.__bases__[1]
        super()._save(output_dir, state_dict)
        self.model.__class__ = kind
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        self.model.config.save_pretrained(folder)  # an adapter comes without
        self.processor.save_pretrained(folder)
        (Path(folder) / "training_args.bin").unlink()  # a pickle; run.json says it

    @contextmanager
    def whole_model(self) -> Iterator[None]:
        """All weights of a model that FSDP divides, on every process, which may then use it at its own pace."""
        parts = [part for part in self.model.modules() if isinstance(part, FSDPModule)]
        for part in parts:
            part.unshard()
            part.set_reshard_after_forward(False, recurse=False)
        yield
        for part in parts:
            part.set_reshard_after_forward(part is not self.model, recurse=False)
            part.reshard()

    def create_model_card(self, **kwargs) -> None:
        """Ours, also where `push_to_hub` asks for one."""
        if self.is_world_process_zero():
            write_model_card(Path(self.args.output_dir))

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, RandomSampler):
            return sampler
        num_trials, batch = len(sampler.data_source), global_batch_size(self.args)
        if num_trials < batch and batch > self.args.train_batch_size:
            raise NEDSError(
                f"{num_trials} training trials do not fill one batch of {batch} over all processes and "
                "accumulation steps; lower --per_device_train_batch_size"
            )
        whole = num_trials - num_trials % batch or num_trials
        return RandomSampler(sampler.data_source, num_samples=whole)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        try:
            optimizer = super().create_optimizer(model)
        except (ValueError, TypeError, ImportError) as error:
            raise NEDSError(f"--optim {self.args.optim.value}: {one_line(error)}") from error
        if not isinstance(optimizer, AcceleratedOptimizer):  # an earlier training has made it ours
            optimizer.register_step_post_hook(self._decay_units)
        return optimizer

    def create_scheduler(self, *args, **kwargs) -> torch.optim.lr_scheduler.LRScheduler:
        try:
            return super().create_scheduler(*args, **kwargs)
        except (ValueError, TypeError) as error:
            raise NEDSError(
                f"--lr_scheduler_type {self.args.lr_scheduler_type.value} with --lr_scheduler_kwargs "
                f"{self.args.lr_scheduler_kwargs}: {error}"
            ) from error

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        super().log(logs, *args, **kwargs)
        # The history is in every checkpoint; with all metrics of each of 84 sessions it would outgrow the weights.
        last = self.state.log_history.pop()
        self.state.log_history.append({n: v for n, v in last.items() if "/" not in n or n == self._best})
        if not math.isfinite(logs.get("loss", 0.0)):
            raise Diverged(
                f"training diverged: by step {self.state.global_step} the loss is no number any more; a lower "
                "--learning_rate may help"
            )

    @property
    def _best(self) -> str:
        """Name of the metric that checkpoints are chosen by."""
        return "eval_" + (self.args.metric_for_best_model or "").removeprefix("eval_")

    def _determine_best_metric(self, metrics, trial) -> bool:
        """As in transformers, by the mean over the last evaluations, which the history has after a restart too.

        What is no number is in no mean, nor what --eval_on_start finds, which is of no new checkpoint.
        """
        history = self.state.log_history
        if math.isfinite(metrics.get(self._best, math.nan)):
            history[-1][self._best] = metrics[self._best]  # a callback may have added it
            values = {entry["step"]: entry[self._best] for entry in history if self._best in entry}
            recent = [value for step, value in values.items() if step and math.isfinite(value)][-RECENT:]
            metrics = metrics | {self._best: float(np.mean(recent))}
        return super()._determine_best_metric(metrics, trial)

    @torch.no_grad()
    def _decay_units(self, optimizer: torch.optim.Optimizer, *_) -> None:
        """Decoupled decay, as of AdamW, of the rows that this step has a gradient of."""
        units = {id(rows) for name, rows in self.model.named_parameters() if UNIT_ROWS.search(name)}
        for group in optimizer.param_groups:
            for rows in group["params"]:
                if id(rows) in units and rows.grad is not None:
                    seen = (rows.grad != 0).any(1, keepdim=True)
                    rows.mul_(1 - group["lr"] * self.args.unit_weight_decay * seen)

    def get_decay_parameter_names(self, model) -> list[str]:
        rows = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Table)}
        names = [name for name in super().get_decay_parameter_names(model) if name not in rows]
        return [name for name in names if "trainable_tokens" not in name]  # peft's name of an adapter's rows

    def training_step(self, model, inputs, num_items_in_batch=None):
        self._micro_step = self._micro_step + 1 if self._mask_step == self.state.global_step else 0
        self._mask_step = self.state.global_step
        session_index = inputs["session_index"]
        per_device, size = self.args.train_batch_size, global_batch_size(self.args)
        start = (self._micro_step * self.args.world_size + self.args.process_index) * per_device
        rows = slice(start, start + len(session_index))  # of the global batch
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self.state.global_step)
        config = self.model.config
        uniform = torch.rand(size, num_uniform(config), generator=generator)
        uniform = uniform[:1].expand(len(session_index), -1) if config.masks_per == "batch" else uniform[rows]
        hidden, available = sample_masks(config, inputs["available"], uniform.to(session_index.device))
        if self.args.mixup:
            rng = np.random.default_rng([self.args.seed, self.state.global_step])
            inputs = self._mixed(inputs, rng.random(size)[rows], rng.beta(*2 * [self.args.mixup], size)[rows])
        return super().training_step(
            model, {**inputs, "hidden": hidden, "available": available}, num_items_in_batch
        )

    def _mixed(self, inputs: dict, places: np.ndarray, shares: np.ndarray) -> dict:
        """Each trial mixed with another of its session: that at `places` (B,), from 0 to 1 among them. Of `shares`
        (B,) and their rests the larger ones stay its own."""
        session_index = inputs["session_index"]
        trials = [self.trials_of_session[session] for session in session_index.tolist()]
        partners = [int(those[int(place * len(those))]) for those, place in zip(trials, places)]
        batch = self.data_collator(self.train_dataset.__getitems__(partners))
        share = torch.from_numpy(np.maximum(shares, 1 - shares).astype(np.float32)).to(session_index.device)
        return mix_trials(self.model.config, inputs, send_to_device(batch, session_index.device), share)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """This process's share of the trials, none twice."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        share = range(self.args.process_index, len(dataset), self.args.world_size)
        return DataLoader(
            Subset(dataset, share),
            batch_size=self.args.per_device_eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        with self.whole_model():
            sums, losses, num_trials = score_batches(self.model, self.processor, dataloader)
        # Every process has the same keys in the same order, whether or not it saw a trial of the session.
        sessions = self.processor.session_ids
        sums = {session: sums.get(session) or sums_of(self.processor, session) for session in sessions}
        behaviors = ("spikes", *self.processor.behaviors)
        names = ["loss", *(f"loss_{name}" for name in behaviors)]
        totals = np.array([losses.get(name, 0.0) for name in names] + [num_trials])
        vectors = [totals, *(sums[session].vector for session in sessions)]
        lengths = np.cumsum([len(vector) for vector in vectors])[:-1]
        flat = torch.from_numpy(np.concatenate(vectors))
        if self.args.world_size > 1:
            flat = self.accelerator.reduce(flat.to(self.args.device), "sum").cpu()
        totals, *vectors = np.split(flat.numpy(), lengths)
        scores = {}
        for session, vector in zip(sessions, vectors):
            sums[session].vector[:] = vector
            if sums[session].num_trials:
                scores[session] = sums[session].metrics(self.processor.mean_counts(session))
        metrics = dict(zip(names, (totals[:-1] / totals[-1]).tolist())) | mean_table(scores)
        for session, values in scores.items():
            metrics |= {f"{session}/{name}": value for name, value in values.items()}
        return EvalLoopOutput(
            predictions=None,
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in metrics.items()},
            num_samples=int(totals[-1]),
        )
