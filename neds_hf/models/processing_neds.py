"""From recordings to the model's inputs, and from its outputs to the data's own units."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .configuration_neds import Checkpoint, NEDSConfig

SCALINGS = ("z_score", "minus_one_one", "zero_one")


class NEDSInputs(BatchFeature):
    """Inputs of `NEDSModel.forward`, a dictionary; `to` moves the tensors in its dictionaries too."""

    def to(self, *args, **kwargs) -> "NEDSInputs":
        super().to(*args, **kwargs)
        for name in {"behaviors", "available"} & set(self):
            self[name] = BatchFeature(self[name]).to(*args, **kwargs).data
        return self


class NEDSProcessor(Checkpoint, ProcessorMixin):
    """What a model must know of the data it was trained on; saved beside its weights.

    Continuous behaviours are scaled to (y - offset) / scale, by constants of the session's training trials.

    Args:
        modalities: As in `NEDSConfig`.
        num_bins, bin_size_s, window_start_s, align_event: The trial window.
        sessions: Session id to its `"units"` (uuid of every unit, in the order of the model's rows),
            `"mean_counts"` (mean spikes per bin of every unit, None where not known) and `"scaling"` (continuous
            behaviour to `[offset, scale]`), all of the training trials. In the order of `NEDSConfig.session_ids`.
        scaling: How `add_session` chooses offset and scale: `"z_score"`, mean and standard deviation;
            `"minus_one_one"`, so that the training trials reach from -1 to 1 (paper, which does not say by which
            constants); `"zero_one"`, from 0 to 1 (published code, which looks at the test trials too).

    Raises:
        ValueError: A scaling that does not exist, or statistics of a session that are not those of its units, mean
            counts that counts cannot have, or constants that are not two finite numbers, the second not zero.
    """

    # As its `processing_class` a Trainer saves it with the model, but takes every processor to hold a tokenizer.
    tokenizer = SimpleNamespace(bos_token_id=None, eos_token_id=None, pad_token_id=None)

    def __init__(
        self,
        modalities: Sequence[dict] = (),
        num_bins: int = 100,
        bin_size_s: float = 0.02,
        window_start_s: float = -0.5,
        align_event: str = "stimOn_times",
        sessions: Sequence[dict] = (),
        scaling: str = "z_score",
    ):
        super().__init__()
        if scaling not in SCALINGS:
            raise ValueError(f"scaling is {', '.join(SCALINGS)}, not {scaling!r}")
        self.modalities = [dict(modality) for modality in modalities]
        self.num_bins = int(num_bins)  # not NumPy's, of which JSON knows nothing
        self.bin_size_s = float(bin_size_s)
        self.window_start_s = float(window_start_s)
        self.align_event = align_event
        self.sessions = [dict(session) for session in sessions]
        self.scaling = scaling
        for session in self.sessions:
            whose, units, means = f"session {session['session']!r}", session["units"], session["mean_counts"]
            if len(means) != len(units):
                raise ValueError(
                    f"{whose} has {len(units)} units, expected as many mean_counts, found {len(means)}"
                )
            _check_means(whose, [mean for mean in means if mean is not None])
            for name, constants in session["scaling"].items():
                if np.shape(constants) != (2,) or not np.isfinite(constants).all() or constants[1] == 0:
                    raise ValueError(f"{whose}: expected an offset and a scale of {name}, found {constants}")

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        content, kwargs = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if not content:  # transformers would make one that knows nothing
            raise OSError(
                f"{pretrained_model_name_or_path} has no processor_config.json; the processor's save_pretrained "
                "writes it"
            )
        return content, kwargs

    @property
    def session_ids(self) -> list[str]:
        """Sessions in the order of `session_index`."""
        return [session["session"] for session in self.sessions]

    @property
    def behaviors(self) -> dict[str, list[str] | None]:
        """Behaviour to its class names, None for a continuous one."""
        return {modality["name"]: modality.get("classes") for modality in self.modalities[1:]}

    @property
    def times_s(self) -> np.ndarray:
        """(T,) centre of each bin, seconds from the event."""
        return self.window_start_s + (np.arange(self.num_bins) + 0.5) * self.bin_size_s

    def session(self, session: str) -> dict:
        """Statistics of one session.

        Raises:
            ValueError: The processor does not know the session.
        """
        for known in self.sessions:
            if known["session"] == session:
                return known
        raise ValueError(
            f"this processor has no statistics of session {session!r}; add_session gives it them"
        )

    def mean_counts(self, session: str) -> np.ndarray:
        """(N,) mean spikes per bin of the session's units on its training trials; NaN where not known."""
        return np.array(self.session(session)["mean_counts"], np.float64)

    def add_session(
        self,
        session: str,
        units: Sequence[str],
        spike_counts: np.ndarray,
        behaviors: Mapping[str, np.ndarray],
    ) -> None:
        """Learn a session's statistics from its training trials.

        Args:
            session: Session id.
            units: Uuid of each of the N units.
            spike_counts: (B, T, N).
            behaviors: Continuous behaviour to (B, T); a trial that is not finite in every bin is without it. The
                rest is not looked at.

        Raises:
            ValueError: A known session, wrong shapes, no trials, counts that are none, or a continuous behaviour
                that never changes.
        """
        if session in self.session_ids:
            raise ValueError(f"session {session!r} is already in this processor")
        spike_counts = np.asarray(spike_counts)
        if spike_counts.shape[1:] != (self.num_bins, len(units)) or len(spike_counts) == 0:
            raise ValueError(
                f"session {session!r}: spike counts are {spike_counts.shape}, expected (trials, "
                f"{self.num_bins}, {len(units)})"
            )
        scaling = {}
        for name, classes in self.behaviors.items():
            if classes is not None or name not in behaviors:
                continue
            values = np.asarray(behaviors[name], np.float64)
            if values.shape != spike_counts.shape[:2]:
                raise ValueError(
                    f"session {session!r}: {name} is {values.shape}, expected {spike_counts.shape[:2]}"
                )
            values = values[np.isfinite(values).all(1)]
            if len(values) == 0:
                continue
            if values.min() == values.max():
                raise ValueError(
                    f"session {session!r}: {name} is {values.min()} in every bin of the training trials; NaN says "
                    "that it was not recorded"
                )
            low, high = values.min(), values.max()
            offset, scale = {
                "z_score": (values.mean(), values.std()),
                "minus_one_one": ((high + low) / 2, (high - low) / 2),
                "zero_one": (low, high - low),
            }[self.scaling]
            scaling[name] = [float(offset), float(scale)]
        means = spike_counts.mean((0, 1), dtype=np.float64).round(9).tolist()
        _check_means(f"session {session!r}", means)
        self.sessions.append(
            {
                "session": session,
                "units": [str(unit) for unit in units],
                "mean_counts": means,
                "scaling": scaling,
            }
        )

    def scale(self, session: str, name: str, values: np.ndarray) -> np.ndarray:
        """Values of a continuous behaviour, any shape, in the model's scale.

        Raises:
            ValueError: The session's training trials had none of it, so that there are no constants.
        """
        offset, scale = self._constants(session, name)
        return (values - offset) / scale

    def unscale(self, session: str, name: str, values: np.ndarray) -> np.ndarray:
        """Back from the model's scale to the data's own units. Raises ValueError as `scale` does."""
        offset, scale = self._constants(session, name)
        return values * scale + offset

    def in_data_units(self, session: str, predictions: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """What a model predicts of behaviours in trials of one session, in the data's own units.

        Args:
            session: Session id.
            predictions: As in `NEDSOutput`, on the CPU; what else is in it is not looked at.

        Returns:
            Behaviour to (B, T), or (B, classes) probabilities. A continuous one that the session's training trials
            did not have, so that its scale is not known, is left out.
        """
        scaling, behaviors = self.session(session)["scaling"], {}
        for name, classes in self.behaviors.items():
            if classes:
                behaviors[name] = predictions[name].softmax(-1).numpy()
            elif name in scaling:
                behaviors[name] = self.unscale(session, name, predictions[name].numpy())
        return behaviors

    def _constants(self, session: str, name: str) -> list[float]:
        scaling = self.session(session)["scaling"]
        if name not in scaling:
            raise ValueError(f"session {session!r} had no {name} to train on, so its scale is not known")
        return scaling[name]

    def __call__(
        self,
        sessions: str | Sequence[str],
        spike_counts: np.ndarray | Sequence[np.ndarray],
        behaviors: Mapping[str, np.ndarray] | None = None,
    ) -> NEDSInputs:
        """Inputs of `NEDSModel.forward`.

        Args:
            sessions: Session of every trial, or one for all.
            spike_counts: Of every trial (T, N), N that of its session; or one array (B, T, N).
            behaviors: Name to (B, T) in the data's units, a trial that is not finite in every bin is without it;
                or (B,) class indices, -1 for a trial without it. A behaviour that is not named is missing, and so
                is a continuous one that the session's training trials did not have: its scale is not known.

        Returns:
            `session_index`, `spike_counts` (uint8, zero where padded), `unit_mask`, `behaviors`, `available`.

        Raises:
            ValueError: No trials, an unknown session or behaviour, a shape that does not fit, spike counts that
                are not whole numbers from 0 to 255, a class that does not exist.
        """
        behaviors = dict(behaviors or {})
        batch_size = len(spike_counts)
        if batch_size == 0:
            raise ValueError("there are no trials")
        sessions = [sessions] * batch_size if isinstance(sessions, str) else list(sessions)
        unknown = set(behaviors) - set(self.behaviors)
        if unknown:
            raise ValueError(f"behaviours {sorted(unknown)} are not among {list(self.behaviors)}")
        if len(sessions) != batch_size:
            raise ValueError(f"there are {len(sessions)} sessions, but spike counts of {batch_size} trials")
        places = {known: place for place, known in enumerate(self.session_ids)}
        for session in dict.fromkeys(sessions):
            if session not in places:
                raise ValueError(f"this processor does not know session {session!r}")
        counts = [len(self.sessions[places[session]]["units"]) for session in sessions]
        padded = np.zeros((batch_size, self.num_bins, max(counts)), np.uint8)
        for trial, (session, num_units, spikes) in enumerate(zip(sessions, counts, spike_counts)):
            if np.shape(spikes) != (self.num_bins, num_units):
                raise ValueError(
                    f"session {session!r}: spike counts of a trial are {np.shape(spikes)}, expected "
                    f"{(self.num_bins, num_units)}, bins by units"
                )
            spikes = np.asarray(spikes)
            if spikes.dtype != np.uint8 and not np.isin(spikes, np.arange(256)).all():
                raise ValueError(
                    f"session {session!r}: spike counts of a trial are not whole numbers from 0 to 255"
                )
            padded[trial, :, :num_units] = spikes

        values, available = {}, {}
        for name, classes in self.behaviors.items():
            shape, missing = ((batch_size,), -1) if classes else ((batch_size, self.num_bins), np.nan)
            given = np.asarray(behaviors.get(name, np.full(shape, missing)))
            if given.shape != shape:
                raise ValueError(f"{name} is {given.shape}, expected {shape}")
            if given.dtype.kind not in "biuf":
                expected = "class indices, -1" if classes else "numbers, NaN"
                raise ValueError(f"{name} is of type {given.dtype}, expected {expected} where missing")
            if classes:
                given, present = self._class_indices(name, given)
            else:
                given, present = self._scaled(name, given, sessions)
            values[name], available[name] = torch.from_numpy(given), torch.from_numpy(present)
        return NEDSInputs(
            {
                "session_index": torch.tensor([places[session] for session in sessions]),
                "spike_counts": torch.from_numpy(padded),
                "unit_mask": torch.arange(padded.shape[2]) < torch.tensor(counts)[:, None],
                "behaviors": values,
                "available": available,
            }
        )

    def _scaled(
        self, name: str, values: np.ndarray, sessions: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(B, T) float32 of a continuous behaviour, and (B,) which trials have it; the others are 0."""
        known = {session["session"]: session["scaling"].get(name) for session in self.sessions}
        constants = [known[session] for session in sessions]
        present = np.isfinite(values).all(1) & np.array([found is not None for found in constants])
        offset, scale = np.array([(0.0, 1.0) if found is None else found for found in constants]).T[..., None]
        return np.where(present[:, None], (values - offset) / scale, 0.0).astype(np.float32), present

    def _class_indices(self, name: str, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B,) int64 of a categorical behaviour, and (B,) which trials have it; the others are 0."""
        classes, present = self.behaviors[name], indices != -1
        if not ((indices >= -1) & (indices < len(classes)) & (indices % 1 == 0)).all():
            raise ValueError(
                f"{name} has classes {np.unique(indices)}, but only {len(classes)} classes: {classes}"
            )
        return np.where(present, indices, 0).astype(np.int64), present


def check_processor(processor: "NEDSProcessor", config: NEDSConfig) -> None:
    """Make sure that a processor and a model are of the same sessions, units, behaviours and bins.

    Raises:
        ValueError: They are not.
    """
    classes = {modality["name"]: list(modality.get("classes", ())) for modality in config.modalities[1:]}
    for what, ours, theirs in (
        ("sessions", processor.session_ids, config.session_ids),
        ("numbers of units", [len(session["units"]) for session in processor.sessions], config.unit_counts),
        ("behaviours", {name: list(given or ()) for name, given in processor.behaviors.items()}, classes),
        ("number of bins", processor.num_bins, config.num_bins),
    ):
        if ours != theirs:
            raise ValueError(
                f"the processor has the {what} {ours}, the model {theirs}: take both from one folder, as they "
                "were saved"
            )


def _check_means(whose: str, means: Sequence[float]) -> None:
    for mean in means:
        if not 0 <= mean < np.inf:
            raise ValueError(
                f"{whose}: expected mean_counts of 0 or more, null where not known, found {mean}"
            )


__all__ = ["NEDSProcessor"]
