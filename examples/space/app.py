"""A page for any NEDS model: trials, their spikes and behaviour, recorded and predicted.

`NEDS_MODEL` and `NEDS_DATASET` name what it opens with: folders, or repositories on the Hub.
"""

import html
import os
from collections.abc import Callable
from functools import wraps

import gradio as gr
from trials import Chosen, changed_folders, open_session, sessions_of, view

from neds_hf.errors import NEDSError

TASKS = [("Decoding: behaviour from spikes", "decoding"), ("Encoding: spikes from behaviour", "encoding")]


def on_page(function: Callable) -> Callable:
    """A `NEDSError` is a message on the page, which goes on showing what it showed."""

    @wraps(function)
    def shown(*arguments):
        try:
            return function(*arguments)
        except NEDSError as error:
            message = html.escape(str(error), quote=False)
            raise gr.Error(message, duration=None, print_exception=False) from error

    return shown


@on_page
def choose(model: str, dataset: str, upload: str | None, task: str) -> tuple:
    """The first trial of what was named or uploaded."""
    model, dataset = model.strip(), dataset.strip()
    chosen = Chosen(model, dataset, upload, changed_folders(model, dataset))
    sessions = sessions_of(chosen)
    return chosen, gr.Dropdown(sessions, value=sessions[0]), *choose_session(chosen, sessions[0], task)


@on_page
def choose_session(chosen: Chosen, session: str, task: str) -> tuple:
    """The first trial of a session."""
    trials = [(str(number), row) for row, number in enumerate(open_session(chosen, session).trial_index)]
    return gr.Dropdown(trials, value=0), *choose_trial(chosen, session, 0, task)


@on_page
def choose_trial(chosen: Chosen, session: str, row: int, task: str) -> tuple:
    """One trial."""
    if chosen is None:
        raise NEDSError("nothing is loaded yet: name a model, and a dataset or a file of trial arrays")
    said, *figures = view(chosen, session, row, task)
    return said, *(gr.Plot(figure, visible=figure is not None) for figure in figures)


with gr.Blocks(title="NEDS", fill_width=True, delete_cache=(3600, 86400)) as page:
    gr.Markdown(
        "# Neural encoding and decoding\nA NEDS model predicts behaviour from spikes (decoding) and spikes from "
        "behaviour (encoding): here, one trial at a time, of a dataset's test trials or of a file of yours."
    )
    chosen = gr.State()
    with gr.Row():
        with gr.Column(scale=1, min_width=330):
            model = gr.Textbox(os.environ.get("NEDS_MODEL", "neds-ibl"), label="Model: folder or USER/NAME")
            dataset = gr.Textbox(
                os.environ.get("NEDS_DATASET", "dataset"), label="Dataset: folder or USER/NAME"
            )
            load = gr.Button("Load", variant="primary")
            progress = gr.Markdown(min_height=30)
            upload = gr.File(label="Or trial arrays of a known session", file_types=[".npz"], height=170)
            task = gr.Radio(TASKS, value="decoding", label="Direction")
            session = gr.Dropdown([], label="Session")
            trial = gr.Dropdown([], label="Trial")
        with gr.Column(scale=3):
            said = gr.Markdown()
            with gr.Row():
                with gr.Column():
                    behavior = gr.Plot(label="Behaviour", show_label=False)
                with gr.Column():
                    probabilities = gr.Plot(label="Class probabilities", show_label=False)
            spikes = gr.Plot(label="Spikes", show_label=False)
    shown = [said, spikes, behavior, probabilities]
    named, opened = [model, dataset, upload, task], [chosen, session, trial, *shown]
    # Of choices made while the page is busy, the last counts; a failure covers nothing that the page shows.
    how = {"trigger_mode": "always_last", "show_progress_on": progress}
    gr.on([page.load, load.click, model.submit, dataset.submit, upload.clear], choose, named, opened, **how)
    uploaded = upload.upload(choose, named, opened, api_visibility="private", **how)
    uploaded.failure(lambda: None, outputs=upload, api_visibility="private")
    session.input(choose_session, [chosen, session, task], [trial, *shown], **how)
    gr.on([trial.input, task.input], choose_trial, [chosen, session, trial, task], shown, **how)

if __name__ == "__main__":
    page.launch()
