"""The Space shows what the model predicts, takes files, and says what is wrong on the page. In a browser too."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import load_dataset
from hub.processes import python
from hub.server import Hub
from packaging.requirements import Requirement
from small_dataset import simulate, write_arrays, write_dataset
from transformers import pipeline

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
REPOSITORY = Path(__file__).resolve().parents[1]
SPACE = REPOSITORY / "examples/space"
sys.path.insert(0, str(SPACE))

import app  # noqa: E402
import gradio as gr  # noqa: E402
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402
from trials import Chosen, changed_folders, class_probabilities, open_session, sessions_of, view  # noqa: E402

from neds_hf.errors import NEDSError  # noqa: E402
from neds_hf.models import NEDSModel  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def chosen(model_folder, dataset):
    return Chosen(str(model_folder), str(dataset), None)


@pytest.fixture(scope="module")
def upload(tmp_path_factory):
    """Three trials of `ann` with all six units, of which the model knows five; trial 5 has no wheel speed."""
    return write_arrays(tmp_path_factory.mktemp("arrays") / "three.npz", simulate("ann"), np.array([4, 5, 6]))


def lines(axes):
    return [np.asarray(line.get_ydata()) for line in axes.lines if len(line.get_xdata()) == 20]


# --- what is shown ---


def test_sessions_are_those_that_model_and_dataset_share(chosen):
    assert sessions_of(chosen) == ["ann", "bob"]


def test_a_folder_that_has_changed_is_opened_anew(chosen, tmp_path):
    folder = shutil.copytree(chosen.model, tmp_path / "model")

    def choice():
        again = Chosen(str(folder), chosen.dataset, None, changed_folders(str(folder), chosen.dataset))
        return view(again, "ann", 0, "decoding")[3].axes[0].patches[0].get_width()

    before = choice()
    model = NEDSModel.from_pretrained(folder)
    model.behavior_readout["choice"].bias.data += torch.tensor([5.0, -5.0])
    model.save_pretrained(folder)
    assert before < 0.99 < choice()


@pytest.mark.parametrize("row", [0, 3])
def test_decoding_shows_what_was_recorded_and_what_the_pipeline_predicts(chosen, row):
    trial = [row for row in load_dataset(chosen.dataset, "trials")["test"] if row["session"] == "ann"][row]
    expected = pipeline("neural-decoding", model=chosen.model, device="cpu")(trial)
    said, spikes, behavior, probabilities = view(chosen, "ann", row, "decoding")
    assert f"Trial {trial['trial_index']}**" in said and f"test trials of `{chosen.dataset}`" in said
    labels = {"choice": ("right", "left"), "block": ("0.2", "0.5", "0.8")}
    for name, panel in zip(("wheel_speed", "whisker_motion_energy"), behavior.axes, strict=True):
        recorded, predicted = lines(panel)
        np.testing.assert_allclose(recorded, trial[name], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(predicted, expected[name], rtol=1e-5, atol=1e-5)
    assert [panel.get_ylabel() for panel in behavior.axes] == [
        "wheel speed\n(rad/s)",
        "whisker motion energy\n(a.u.)",
    ]
    for name, panel in zip(labels, probabilities.axes, strict=True):
        widths = [bar.get_width() for bar in panel.patches]
        np.testing.assert_allclose(widths, list(expected[name].values()), rtol=1e-5)
        real = labels[name][trial[name]]
        assert f"{name}: **{real}**" in said
        shown = [label if label != real else f"{label}\n(recorded)" for label in labels[name]]
        assert [label.get_text() for label in panel.get_yticklabels()] == shown
    (raster,) = spikes.axes
    assert len(raster.collections[0].get_offsets()) == np.count_nonzero(trial["spike_counts"])


def test_names_of_many_classes_cover_no_other():
    angles = [str(angle) for angle in range(0, 360, 20)]
    probabilities = {"choice": {"right": 0.4, "left": 0.6}, "angle": dict.fromkeys(angles, 1 / 18)}
    figure = class_probabilities(probabilities, {"choice": "left", "angle": "40"})
    figure.canvas.draw()
    labels = [label.get_window_extent() for label in figure.axes[1].get_yticklabels()]
    assert all(below.y1 < above.y0 for above, below in pairwise(labels))


def test_encoding_shows_spikes_and_the_rates_of_the_pipeline(chosen):
    trial = [row for row in load_dataset(chosen.dataset, "trials")["test"] if row["session"] == "bob"][1]
    rates_hz = pipeline("neural-encoding", model=chosen.model, device="cpu")(trial)["rates_hz"]
    said, spikes, behavior, probabilities = view(chosen, "bob", 1, "encoding")
    assert f"Trial {trial['trial_index']}**" in said and "no whisker motion energy" in said
    image = next(panel.images[0] for panel in spikes.axes if panel.images)
    order = np.argsort(rates_hz.mean(0))  # all units are of one region
    np.testing.assert_allclose(np.asarray(image.get_array()).T, rates_hz[:, order], rtol=1e-5)
    (panel,) = behavior.axes  # `bob` has no whisker video
    (recorded,) = lines(panel)
    np.testing.assert_allclose(recorded, trial["wheel_speed"], rtol=1e-5, atol=1e-5)
    assert probabilities is None


def test_a_file_shows_its_trials_with_the_units_that_the_model_knows(chosen, upload):
    chosen = chosen._replace(upload=str(upload))
    assert sessions_of(chosen) == ["ann"]
    assert open_session(chosen, "ann").trial_index.tolist() == [4, 5, 6]
    recording = simulate("ann")
    known = recording.spike_counts[5][:, [0, 1, 3, 4, 5]]
    expected = pipeline("neural-decoding", model=chosen.model, device="cpu")(
        {"session": "ann", "spike_counts": known}
    )
    said, spikes, behavior, _ = view(chosen, "ann", 1, "decoding")
    assert "Trial 5**" in said and "`three.npz`" in said and "no wheel speed" in said
    assert len(spikes.axes[0].collections[0].get_offsets()) == np.count_nonzero(known)
    recorded, predicted = lines(behavior.axes[0])
    assert np.isnan(recorded).all()
    np.testing.assert_allclose(predicted, expected["wheel_speed"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        lines(behavior.axes[1])[0], recording.continuous["whisker_motion_energy"][5], rtol=1e-5
    )


def test_regions_of_a_file_are_those_of_the_units_that_are_shown(chosen, upload, tmp_path):
    regions = np.array(["CA1", "CA1", "PO", "CA1", "CA1", "LP"])
    with np.load(upload) as arrays:
        np.savez(tmp_path / "regions.npz", **arrays, unit_region=regions)
    chosen = chosen._replace(upload=str(tmp_path / "regions.npz"))
    assert open_session(chosen, "ann").regions.tolist() == ["CA1", "CA1", "CA1", "CA1", "LP"]


def test_spikes_alone_are_decoded_but_not_encoded(chosen, tmp_path):
    path = write_arrays(tmp_path / "spikes.npz", simulate("ann"), np.arange(3), behaviors=False)
    chosen = chosen._replace(upload=str(path))
    said, _, behavior, probabilities = view(chosen, "ann", 0, "decoding")
    assert "no choice" in said and "no wheel speed" in said
    assert all(np.isfinite(lines(panel)[1]).all() for panel in behavior.axes)
    assert [label.get_text() for label in probabilities.axes[0].get_yticklabels()] == ["right", "left"]
    with pytest.raises(
        NEDSError, match="trial 0 has no behaviour to encode from: choice, block, wheel_speed"
    ):
        view(chosen, "ann", 0, "encoding")


# --- what is wrong ---


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": "nowhere"}, "there is no model folder nowhere"),
        ({"model": str(SPACE)}, "examples/space is no model folder"),
        ({"model": ""}, "name a model, and a dataset or a file of trial arrays"),
        ({"dataset": "nowhere"}, "no dataset folder nowhere"),
        ({"dataset": " "}, "name a model, and a dataset or a file of trial arrays"),
        ({"dataset": "<b>x"}, "no dataset folder &lt;b&gt;x"),  # text, not markup
    ],
)
def test_a_wrong_name_is_an_error_of_the_page(chosen, change, message):
    with pytest.raises(gr.Error) as error:
        app.choose(*chosen._replace(**change)[:3], "decoding")
    assert message in error.value.message


def test_a_dataset_of_other_sessions_is_an_error_of_the_page(chosen, tmp_path):
    other = write_dataset(tmp_path / "other", sessions=("cat",), held_out=())
    with pytest.raises(gr.Error, match="knows no session of the dataset"):
        app.choose(chosen.model, str(other), None, "decoding")


@pytest.fixture(scope="module")
def bad_files(upload, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.npz").write_text("spikes")
    (folder / "half.npz").write_bytes(upload.read_bytes()[:500])
    write_arrays(folder / "cat.npz", simulate("cat"), np.arange(3))
    with np.load(upload) as arrays:
        np.savez(folder / "units.npz", **{**arrays, "spike_counts": arrays["spike_counts"][:, :, :4]})
    return folder


@pytest.mark.parametrize(
    "name, message",
    [
        ("text.npz", "text.npz: expected an .npz of trial arrays"),
        ("half.npz", "half.npz: expected an .npz of trial arrays"),
        ("cat.npz", "the model does not know session cat; `neds finetune` adapts it"),
        ("units.npz", "units.npz lacks 2 of the model's 5 units: ann/4, ..."),
    ],
)
def test_a_bad_file_is_an_error_of_the_page_that_does_not_say_where_uploads_are(
    chosen, bad_files, name, message
):
    with pytest.raises(gr.Error) as error:
        app.choose(chosen.model, chosen.dataset, str(bad_files / name), "decoding")
    assert message in error.value.message and str(bad_files) not in error.value.message


def test_nothing_can_be_shown_before_something_is_loaded():
    with pytest.raises(gr.Error, match="nothing is loaded yet"):
        app.choose_trial(None, None, None, "encoding")


# --- the running page ---


PUSH = """
import sys
from huggingface_hub import HfApi

for name, kind, folder in (("lab/neds-ibl", "model", sys.argv[1]), ("lab/trials", "dataset", sys.argv[2])):
    HfApi().create_repo(name, repo_type=kind)
    HfApi().upload_folder(repo_id=name, repo_type=kind, folder_path=folder)
"""


@pytest.fixture(scope="module")
def server(chosen, tmp_path_factory):
    """Address of `python app.py`, which opens with repositories of a Hub; it must not have printed a traceback."""
    errors = tmp_path_factory.mktemp("server") / "stderr"
    with Hub() as hub:
        lab = hub.environment(tmp_path_factory.mktemp("lab"), token="hf_lab")
        done = python(lab, "-c", PUSH, chosen.model, chosen.dataset)
        assert done.returncode == 0, done.stderr[-3000:]
        names = {"NEDS_MODEL": "lab/neds-ibl", "NEDS_DATASET": "lab/trials"}
        with (
            open(errors, "w") as stderr,
            subprocess.Popen(
                [sys.executable, "-u", str(SPACE / "app.py")],
                env=hub.environment(tmp_path_factory.mktemp("visitor")) | names,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            ) as process,
        ):
            try:
                line = next((line for line in process.stdout if "http://" in line), "")
                assert line, errors.read_text()
                yield re.search(r"http://\S+", line)[0]
            finally:
                process.terminate()
    assert "Traceback" not in errors.read_text()


def test_a_client_of_the_running_page_goes_on_after_an_error(server, chosen, upload, bad_files):
    client = Client(server, verbose=False)
    sessions, trials, said, *plots = client.predict(
        chosen.model, chosen.dataset, None, "decoding", api_name="/choose"
    )
    assert [label for label, _ in sessions["choices"]] == ["ann", "bob"] and sessions["value"] == "ann"
    assert "session `ann`" in said and all(plot["value"]["plot"].startswith("data:image/") for plot in plots)
    with pytest.raises(AppError, match="there is no model folder nowhere"):
        client.predict("nowhere", chosen.dataset, None, "decoding", api_name="/choose")
    with pytest.raises(AppError, match="the model does not know session cat"):
        client.predict(
            chosen.model, chosen.dataset, handle_file(bad_files / "cat.npz"), "decoding", api_name="/choose"
        )
    trials, said, *_ = client.predict("bob", "encoding", api_name="/choose_session")
    label, row = trials["choices"][2]
    said, _, _, probabilities = client.predict("bob", row, "encoding", api_name="/choose_trial")
    assert f"Trial {label}** of session `bob`" in said and not probabilities["visible"]
    sessions, trials, said, *_ = client.predict(
        chosen.model, chosen.dataset, handle_file(upload), "decoding", api_name="/choose"
    )
    assert sessions["choices"] == [["ann", "ann"]] and [label for label, _ in trials["choices"]] == [
        "4",
        "5",
        "6",
    ]
    assert "`three.npz`" in said


def test_the_page_in_a_browser(server, upload, bad_files, tmp_path):
    """Leaves screenshots in `tmp_path`."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    options = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    expect = sync_api.expect
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options.split())
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(20_000)
        expect.set_options(timeout=20_000)
        page.goto(server, wait_until="domcontentloaded")
        plots = page.get_by_test_id("matplotlib").locator("img").filter(visible=True)
        said = page.get_by_text("event at 0 s")
        toast = page.get_by_test_id("toast-body")

        expect(said).to_contain_text("of session ann (test trials of lab/trials) · model lab/neds-ibl")
        expect(plots).to_have_count(3)
        first = said.inner_text()
        page.screenshot(path=tmp_path / "decoding.png", full_page=True)

        page.get_by_label("Trial", exact=True).click()
        page.get_by_role("option").nth(2).click()
        expect(said).not_to_have_text(first)

        page.get_by_label("Encoding: spikes from behaviour").check()
        expect(plots).to_have_count(2)
        page.screenshot(path=tmp_path / "encoding.png", full_page=True)

        page.get_by_label("Session", exact=True).click()
        page.get_by_role("option", name="bob").click()
        expect(said).to_contain_text("of session bob")
        second = said.inner_text()

        page.locator("input[type=file]").set_input_files(bad_files / "text.npz")
        expect(toast).to_contain_text("text.npz: expected an .npz of trial arrays")
        page.wait_for_timeout(500)  # until the message is all there
        page.screenshot(path=tmp_path / "bad_file.png", full_page=True)
        expect(said).to_contain_text("of session bob")
        expect(page.get_by_text("Drop File Here")).to_be_visible()
        expect(toast).to_have_count(1)
        page.get_by_label("Trial", exact=True).click()  # no message is in the way of the rest
        page.get_by_role("option").nth(1).click()
        expect(said).not_to_have_text(second)
        page.get_by_test_id("toast-close").click()

        page.get_by_label("Model").fill("nowhere")
        page.get_by_role("button", name="Load", exact=True).click()
        expect(toast).to_contain_text("there is no model folder nowhere")
        page.wait_for_timeout(500)
        page.screenshot(path=tmp_path / "bad_model.png", full_page=True)
        page.get_by_test_id("toast-close").click()
        page.get_by_label("Decoding: behaviour from spikes").check()
        expect(plots).to_have_count(3)
        expect(said).to_contain_text("of session bob")

        page.reload(wait_until="domcontentloaded")
        expect(said).to_contain_text("of session ann")
        page.locator("input[type=file]").set_input_files(upload)
        expect(said).to_contain_text("Trial 4 of session ann (three.npz)")
        page.screenshot(path=tmp_path / "file.png", full_page=True)
        page.get_by_label("Clear").click()
        expect(said).to_contain_text("test trials of lab/trials")
        browser.close()


# --- the repository of the Space ---


def test_the_space_names_the_gradio_that_is_pinned():
    metadata = yaml.safe_load((SPACE / "README.md").read_text().split("---")[1])
    pins = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().split())
    assert metadata["sdk"] == "gradio" and metadata["sdk_version"] == pins["gradio"]
    assert (SPACE / metadata["app_file"]).exists()


def test_the_space_installs_what_the_package_needs():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    atlas = [text for text in extras["ibl"] if Requirement(text).name == "iblatlas"]
    needed = [*project["dependencies"], *extras["report"], *extras["lora"], *atlas]
    assert sorted((SPACE / "requirements.txt").read_text().split()) == sorted(needed)
