"""Encoding and decoding of whole splits, by one model or several."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from neds_hf.data.collator import ArrowTrials, NEDSCollator
from neds_hf.data.recordings import Recordings
from neds_hf.errors import NEDSError
from neds_hf.metrics.sums import SessionSums
from neds_hf.models.modeling_neds import NEDSModel, NEDSOutput
from neds_hf.models.processing_neds import NEDSProcessor
from neds_hf.training.sessions import load_model

TASKS = ("encoding", "decoding")


class Ensemble(nn.Module):
    """Several models of the same sessions as one: expected counts, behaviours and class probabilities averaged.

    Args:
        models: As runs of several seeds give them, with the same modalities, sessions, units and scales.
    """

    def __init__(self, models: Sequence[NEDSModel]):
        super().__init__()
        self.models = nn.ModuleList(models)

    @property
    def device(self) -> torch.device:
        return self.models[0].device

    def forward(self, **inputs) -> NEDSOutput:
        """`log_rates` and `predictions` (of classes the logarithms of probabilities) as of `NEDSModel`; the losses
        are the models' mean."""
        outputs = [model(**inputs) for model in self.models]
        predictions = {}
        for name, classes in self.models[0].config.behaviors.items():
            each = torch.stack([output.predictions[name] for output in outputs])
            predictions[name] = _log_mean_exp(each.log_softmax(-1)) if classes else each.mean(0)
        names = outputs[0].losses
        return NEDSOutput(
            loss=sum(output.loss for output in outputs) / len(outputs),
            losses={name: sum(output.losses[name] for output in outputs) / len(outputs) for name in names},
            log_rates=_log_mean_exp(torch.stack([output.log_rates for output in outputs])),
            predictions=predictions,
        )


def _log_mean_exp(logs: torch.Tensor) -> torch.Tensor:
    """Over the first axis."""
    return logs.logsumexp(0) - math.log(len(logs))


def load_models(sources: Sequence[str]) -> tuple[NEDSModel | Ensemble, NEDSProcessor]:
    """One model as by `load_model`, or several that predict together.

    Raises:
        NEDSError: One cannot be loaded, or they are not of the same sessions, units and scales.
    """
    models, processors = zip(*(load_model(source) for source in sources))
    for source, processor in zip(sources, processors):
        if processor.to_dict() != processors[0].to_dict():
            raise NEDSError(
                f"{source} and {sources[0]} cannot predict together: sessions, units or scales are not the same"
            )
    return models[0] if len(models) == 1 else Ensemble(models), processors[0]


def split_loader(
    processor: NEDSProcessor, recordings: Recordings, split: str, batch_size: int = 64
) -> DataLoader:
    """Batches of a split, in the order of its table."""
    return DataLoader(
        ArrowTrials(recordings.split(split)),
        batch_size=batch_size,
        collate_fn=NEDSCollator(processor, recordings.features),
    )


@torch.no_grad()
def translate(model: NEDSModel | Ensemble, batch: dict, task: str) -> NEDSOutput:
    """One pass that hides all spikes (`"encoding"`) or all behaviours (`"decoding"`), with its loss."""
    was_training = model.training
    model.eval()
    output = model(**send_to_device(batch, model.device), scheme=task)
    model.train(was_training)
    return output


def sums_of(processor: NEDSProcessor, session: str) -> SessionSums:
    """Empty sums of one session."""
    behaviors = processor.behaviors
    return SessionSums(
        processor.num_bins,
        len(processor.session(session)["units"]),
        [name for name, classes in behaviors.items() if classes is None],
        {name: len(classes) for name, classes in behaviors.items() if classes is not None},
    )


def by_session(processor: NEDSProcessor, batch: dict) -> Iterator[tuple[str, np.ndarray, int]]:
    """Each session of a batch, the rows of its trials, and its number of units."""
    index = batch["session_index"].numpy()
    for place in np.unique(index):
        rows = np.flatnonzero(index == place)
        yield processor.session_ids[place], rows, int(batch["unit_mask"][rows[0]].sum())


def score_batches(
    model: NEDSModel | Ensemble, processor: NEDSProcessor, batches: Iterator[dict]
) -> tuple[dict[str, SessionSums], dict[str, float], int]:
    """Encode and decode batches from `NEDSCollator`.

    Returns:
        Session to the sums of its trials; the sum over trials of the encoding loss and of the decoding loss,
        with the loss of each modality; the number of trials.
    """
    behaviors = processor.behaviors
    sums, losses, num_trials = {}, {}, 0
    for batch in batches:
        size = len(batch["session_index"])
        encoded, decoded = (translate(model, batch, task) for task in TASKS)
        num_trials += size
        for name, loss in [
            ("loss", encoded.loss + decoded.loss),
            ("loss_spikes", encoded.losses["spikes"]),
            *((f"loss_{name}", decoded.losses[name]) for name in decoded.losses if name != "spikes"),
        ]:
            losses[name] = losses.get(name, 0.0) + size * float(loss)
        log_rates = encoded.log_rates.cpu().numpy()
        counts = batch["spike_counts"].numpy()
        for session, rows, units in by_session(processor, batch):
            if session not in sums:
                sums[session] = sums_of(processor, session)
            sums[session].add_spikes(log_rates[rows, :, :units], counts[rows, :, :units])
            for name, classes in behaviors.items():
                shown = rows[batch["available"][name].numpy()[rows]]
                real = batch["behaviors"][name].numpy()[shown]
                predicted = decoded.predictions[name].cpu().numpy()[shown]
                if classes is None:
                    sums[session].add_continuous(name, predicted, real)
                else:
                    sums[session].add_categorical(name, predicted.argmax(-1), real)
    return sums, losses, num_trials


def score(
    model: NEDSModel | Ensemble, processor: NEDSProcessor, loader: DataLoader, progress: str = ""
) -> dict[str, dict[str, float]]:
    """Session to its metrics (`SessionSums.metrics`); the null of `_train_null` is the training mean."""
    sums, _, _ = score_batches(model, processor, tqdm(loader, desc=progress, disable=not progress))
    return {
        session: sums[session].metrics(processor.mean_counts(session))
        for session in processor.session_ids
        if session in sums
    }


def score_split(
    model: NEDSModel, processor: NEDSProcessor, recordings: Recordings, split: str, batch_size: int = 64
) -> dict[str, dict[str, float]]:
    """Session to its metrics on a split."""
    return score(model, processor, split_loader(processor, recordings, split, batch_size), f"score {split}")


def score_single_behaviors(
    model: NEDSModel | Ensemble, processor: NEDSProcessor, loader: DataLoader, progress: str = ""
) -> dict[str, dict[str, float]]:
    """Encoding from each behaviour alone, the others missing, as in the paper.

    Returns:
        Session to `bits_per_spike_from_<behavior>`, over the trials that have the behaviour, whose mean counts are
        the null; NaN where no trial has it.
    """
    sums = {}
    for batch in tqdm(loader, desc=progress, disable=not progress):
        counts = batch["spike_counts"].numpy()
        for name in processor.behaviors:
            alone = {other: there & (other == name) for other, there in batch["available"].items()}
            output = translate(model, {**batch, "available": alone}, "encoding")
            log_rates = output.log_rates.cpu().numpy()
            for session, rows, units in by_session(processor, batch):
                of_session = sums.setdefault(session, {})
                if name not in of_session:
                    of_session[name] = sums_of(processor, session)
                shown = rows[alone[name].numpy()[rows]]
                of_session[name].add_spikes(log_rates[shown, :, :units], counts[shown, :, :units])
    return {
        session: {
            f"bits_per_spike_from_{name}": of_session[name].metrics()["bits_per_spike"] for name in of_session
        }
        for session, of_session in sums.items()
    }


def predict(
    model: NEDSModel | Ensemble, processor: NEDSProcessor, loader: DataLoader, task: str, progress: str = ""
) -> dict[str, np.ndarray]:
    """Predictions for the trials of one session.

    Returns:
        `log_rates` (B, T, N) for `"encoding"`; for `"decoding"` every behaviour in the data's own units: (B, T),
        or (B, classes) probabilities. Behaviours on whose training trials the session had no values to learn a
        scale from are left out.
    """
    outputs = []
    for batch in tqdm(loader, desc=progress, disable=not progress):
        output = translate(model, batch, task)
        predicted = {"log_rates": output.log_rates} if task == "encoding" else output.predictions
        outputs.append({name: values.cpu() for name, values in predicted.items()})
    predictions = {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}
    if task == "encoding":
        return {"log_rates": predictions["log_rates"].numpy()}
    return processor.in_data_units(processor.session_ids[int(batch["session_index"][0])], predictions)
