"""``load_dataset("ibl_repeated_site")``: a ONE cache as a dataset."""

import hashlib
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ArrowBasedBuilder, BuilderConfig, DatasetInfo, SplitGenerator
from datasets.builder import Key

from neds_hf.data.alf import one_sources
from neds_hf.data.one_cache import fingerprint, list_sessions, open_local
from neds_hf.data.origin import repeated_site_sessions
from neds_hf.data.schema import (
    IBL_BEHAVIORS,
    SESSION_FEATURES,
    SPLITS,
    UNIT_FEATURES,
    ConversionOptions,
    trial_features,
)
from neds_hf.data.storage import convert
from neds_hf.errors import NEDSError


@dataclass
class IBLConfig(BuilderConfig):
    """Which table, and how recordings become trials (see `ConversionOptions`).

    `trial_split` is the option `split`, a name that `load_dataset` takes for itself.
    """

    version: str = "1.0.0"
    align_event: str = ConversionOptions.align_event
    window_s: tuple[float, float] = ConversionOptions.window_s
    bin_size_s: float = ConversionOptions.bin_size_s
    min_rate_hz: float = ConversionOptions.min_rate_hz
    reaction_time_s: tuple[float, float] = ConversionOptions.reaction_time_s
    trial_split: str = ConversionOptions.split
    seed: int = ConversionOptions.seed
    fold: int = ConversionOptions.fold
    whisker_camera: str = ConversionOptions.whisker_camera

    @property
    def options(self) -> ConversionOptions:
        return ConversionOptions.of({**vars(self), "split": self.trial_split})


class IBLRepeatedSite(ArrowBasedBuilder):
    """``load_dataset("ibl_repeated_site", name, data_dir=ONE_CACHE, **options)``.

    Configs: `trials` (default), `units` and `sessions` of all sessions of the cache; `pretrain` and `held_out`,
    the trials of the paper's 74 and 10 sessions, as far as they are there. The cache is converted once per set
    of options, in `num_proc` processes, and again when its files have changed.
    """

    BUILDER_CONFIG_CLASS = IBLConfig
    BUILDER_CONFIGS: ClassVar = [
        IBLConfig(name=name) for name in ("trials", "units", "sessions", "pretrain", "held_out")
    ]
    DEFAULT_CONFIG_NAME = "trials"

    def __init__(
        self, *args, data_dir: str | None = None, data_files=None, hash: str | None = None, **kwargs
    ):
        # `load_dataset` lists the files itself, by patterns that miss some: `data_files` is left aside.
        if data_dir is None:
            raise NEDSError('ibl_repeated_site needs data_dir="...", the folder of a ONE cache')
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise NEDSError(
                'with num_proc, load_dataset belongs under `if __name__ == "__main__":`, as every process that '
                "it starts runs the script again"
            )
        data_dir = str(Path(data_dir).expanduser().resolve())
        open_local(data_dir)  # makes the cache tables where there are none: they are part of the fingerprint
        # The hash names the prepared tables in the cache: it must follow the files, or stale ones are served.
        hash = hashlib.sha256(f"{hash} {fingerprint(data_dir)}".encode()).hexdigest()
        super().__init__(*args, data_dir=data_dir, hash=hash, **kwargs)

    def _info(self) -> DatasetInfo:
        tables = {"units": UNIT_FEATURES, "sessions": SESSION_FEATURES}
        return DatasetInfo(features=tables.get(self.config.name) or trial_features(IBL_BEHAVIORS))

    def _split_generators(self, dl_manager) -> list[SplitGenerator]:
        name, options = self.config.name, self.config.options
        open_one = partial(open_local, self.config.data_dir)
        sessions = list_sessions(open_one())
        if name in ("pretrain", "held_out"):
            named = repeated_site_sessions()[name]
            if not (sessions := [session for session in sessions if session in named]):
                raise NEDSError(
                    f"{self.config.data_dir}: none of the {len(named)} sessions of {name!r} is there"
                )
        digest = hashlib.sha256(f"{self.hash} {options}".encode()).hexdigest()
        out = Path(self._cache_dir_root) / self.dataset_name / "converted" / digest[:16]
        workers = dl_manager.download_config.num_proc or 1
        convert(out, one_sources(open_one, options, sessions), options, IBL_BEHAVIORS, workers=workers)
        if name in ("units", "sessions"):
            folders = {"train": out / name}
        else:
            folders = {split: out / "trials" / split for split in SPLITS}
        files = {
            split: [file for s in sessions if (file := folder / f"{s}.parquet").exists()]
            for split, folder in folders.items()
        }
        return [SplitGenerator(name=split, gen_kwargs={"files": paths}) for split, paths in files.items()]

    def _generate_tables(self, files: list[Path]) -> Iterator[tuple[Key, pa.Table]]:
        for file_index, file in enumerate(files):
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                yield Key(file_index, group), parquet.read_row_group(group)
