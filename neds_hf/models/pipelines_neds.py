"""`pipeline("neural-encoding" or "neural-decoding", model=...)`: trials in, rates or behaviours out."""

from collections.abc import Mapping

import numpy as np
from transformers import Pipeline

from .processing_neds import check_processor


class NEDSPipeline(Pipeline):
    """What both directions share.

    A trial is a mapping: a dictionary of arrays, or a row of `load_dataset(folder, "trials")`. It names its
    `session`; `spike_counts` are (T, N), or flat as in a row; a continuous behaviour is (T,), in the data's units,
    a categorical one the index of its class in `processor.behaviors`: rows of a dataset with other classes have
    others. None, NaN and the index -1 are missing; what the model does not know is not looked at. One trial gives
    one result, a list gives a list, a generator or a dataset an iterator.

    Raises:
        ValueError: A session that the model does not know, a shape that does not fit, nothing to predict from.
    """

    _load_processor = True
    _load_tokenizer = _load_feature_extractor = _load_image_processor = _load_video_processor = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        check_processor(self.processor, self.model.config)
        self.model.eval()  # one that was trained just now is not
        self.feature_extractor = self.processor  # transformers makes no batches without one
        self.tokenizer = None  # there is none, whatever the processor says

    def __call__(self, trials, **kwargs):
        if isinstance(trials, list) and not trials:  # transformers looks at the first
            return []
        if not isinstance(trials, Mapping | list):
            trials = (trial for trial in trials)  # of iterables, transformers takes generators
        return super().__call__(trials, **kwargs)

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """Write model, processor and their code; the folder serves both pipelines."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def _sanitize_parameters(self):
        return {}, {}, {}

    def _num_units(self, trial: Mapping) -> int:
        known = self.processor.session_ids
        if not hasattr(trial, "get"):
            raise ValueError(f"a trial is a mapping, as a row of a dataset is, not {type(trial).__name__}")
        if trial.get("session") not in known:
            raise ValueError(
                f"session of a trial is {trial.get('session')!r}, expected one of the model's {len(known)}: "
                + ", ".join(known[:3] + ["..."] * (len(known) > 3))
            )
        return len(self.processor.session(trial["session"])["units"])

    def _inputs(self, trials: list[dict]) -> dict:
        """Inputs of the model from what `preprocess` gives, on the model's device."""
        behaviors = {
            name: np.stack([trial["behaviors"][name] for trial in trials]) for name in trials[0]["behaviors"]
        }
        sessions = [trial["session"] for trial in trials]
        return self.processor(sessions, [trial["spike_counts"] for trial in trials], behaviors).to(
            self.device
        )

    def _forward(self, batch):
        # One trial, or a list of them where `batch_size` is more than 1.
        trials = batch["trial"] if isinstance(batch["trial"], list) else [batch["trial"]]
        return self._predict(self._inputs(trials))

    def _session(self, outputs) -> dict:
        return self.processor.sessions[int(outputs["session_index"][0])]


class NeuralEncodingPipeline(NEDSPipeline):
    """Spikes from behaviour: `{"session", "rates_hz": (T, N) float32}`; `spike_counts` need not be there."""

    def preprocess(self, trial: Mapping) -> dict:
        num_bins, behaviors, there = self.processor.num_bins, {}, []
        counts = np.zeros((num_bins, self._num_units(trial)), np.uint8)
        scaling = self.processor.session(trial["session"])["scaling"]
        for name, classes in self.processor.behaviors.items():
            shape, missing = ((num_bins,), np.nan) if classes is None else ((), -1)
            given = np.asarray(np.nan if trial.get(name) is None else trial[name])
            if given.shape == () and given != given:
                given = np.full(shape, missing)
            if given.shape != shape:
                raise ValueError(f"{name} of a trial is {given.shape}, expected {shape}")
            behaviors[name] = given
            there.append(given != -1 if classes else name in scaling and np.isfinite(given).all())
        if not any(there):
            raise ValueError(
                f"a trial of session {trial['session']!r} has none of the behaviours to encode from: "
                + ", ".join(behaviors)
            )
        return {"trial": {"session": trial["session"], "spike_counts": counts, "behaviors": behaviors}}

    def _predict(self, inputs):
        output = self.model(**inputs, scheme="encoding", return_loss=False)
        return {"session_index": inputs["session_index"], "log_rates": output.log_rates}

    def postprocess(self, outputs) -> dict:
        session = self._session(outputs)
        log_rates = outputs["log_rates"][0, :, : len(session["units"])]
        return {
            "session": session["session"],
            "rates_hz": (log_rates.exp() / self.processor.bin_size_s).numpy(),
        }


class NeuralDecodingPipeline(NEDSPipeline):
    """Behaviour from spikes: `{"session", <continuous behaviour>: (T,), <categorical one>: {class: probability}}`.

    A continuous behaviour that the session's training trials did not have, so that its scale is not known, is
    left out.
    """

    def preprocess(self, trial: Mapping) -> dict:
        num_bins, num_units = self.processor.num_bins, self._num_units(trial)
        if trial.get("spike_counts") is None:
            raise ValueError(f"a trial of session {trial['session']!r} has no spike_counts to decode from")
        counts = np.asarray(trial["spike_counts"])
        if counts.shape == (num_bins * num_units,):
            counts = counts.reshape(num_bins, num_units)
        return {"trial": {"session": trial["session"], "spike_counts": counts, "behaviors": {}}}

    def _predict(self, inputs):
        output = self.model(**inputs, scheme="decoding", return_loss=False)
        return {"session_index": inputs["session_index"], **output.predictions}

    def postprocess(self, outputs) -> dict:
        result = {"session": self._session(outputs)["session"]}
        for name, (values,) in self.processor.in_data_units(result["session"], outputs).items():
            classes = self.processor.behaviors[name]
            result[name] = dict(zip(classes, values.tolist())) if classes else values
        return result


__all__ = ["NeuralDecodingPipeline", "NeuralEncodingPipeline"]
