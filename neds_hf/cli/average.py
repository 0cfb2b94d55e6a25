"""Make fine-tunings of several seeds one model, whose weights are their mean."""

import argparse
from pathlib import Path

from transformers.utils import logging

from neds_hf.cli.console import print_scores
from neds_hf.data.files import writing
from neds_hf.data.recordings import open_recordings
from neds_hf.errors import NEDSError
from neds_hf.training.averaging import average, common_configuration
from neds_hf.training.fit import write_results
from neds_hf.training.inference import score_split
from neds_hf.training.runs import start_run
from neds_hf.training.sessions import load_model, model_folder


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="neds average",
        description=__doc__,
        epilog="Run `neds finetune` with --seed 0, 1, 2 first, all else the same.",
    )
    parser.add_argument("--model", nargs="+", required=True, help="two or more runs of `neds finetune`")
    parser.add_argument(
        "--dataset", required=True, help="the one they were fine-tuned on: its test split is scored"
    )
    parser.add_argument("--output", type=Path, required=True, help="model folder to write")
    arguments = parser.parse_args(argv)
    if len(arguments.model) < 2:
        raise NEDSError(f"--model: two or more fine-tunings make an average, not {arguments.model[0]} alone")

    logging.disable_progress_bar()  # of weights being read and written
    folders = [model_folder(source) for source in arguments.model]
    configuration = common_configuration(folders)
    recordings = open_recordings(arguments.dataset).only(configuration["sessions"])
    if recordings.fingerprint != configuration["data_fingerprint"]:
        raise NEDSError(f"{arguments.dataset} is not what {arguments.model[0]} was fine-tuned on")
    recordings = recordings.trained_on(configuration["train_splits"])
    models, processors = zip(*map(load_model, folders))
    configuration |= {"command": "average", "models": arguments.model}
    if start_run(arguments.output, configuration):
        raise NEDSError(f"{arguments.output} holds this very average, finished; choose another folder")
    model, processor = average(models), processors[0]
    with writing(arguments.output):
        model.save_pretrained(arguments.output)
        processor.save_pretrained(arguments.output)
    scores = score_split(model, processor, recordings, "test") if "test" in recordings.splits else {}
    write_results(arguments.output, recordings, configuration, scores)
    print_scores(scores)
