"""`--push_to_hub` against a Hub on this machine: what a run sends, and when."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from small_dataset import pretrain_arguments

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def hub():
    """As much of the Hub as an upload of small files needs; `commits` are the paths of each commit."""

    class Hub(BaseHTTPRequestHandler):
        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            content = {}
            if self.path.endswith("/whoami-v2"):
                content = {"type": "user", "name": "lab"}
            elif self.path.endswith("/repos/create"):
                content = {"url": f"{server.url}/lab/neds", "id": "lab/neds"}
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                content = {
                    "files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in files]
                }
            elif "/commit/" in self.path:
                lines = map(json.loads, body.splitlines())
                server.commits.append({line["value"]["path"] for line in lines if line["key"] == "file"})
                content = {"commitUrl": f"{server.url}/lab/neds/commit/1", "commitOid": "1" * 40}
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        do_GET = do_POST = answer

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url, server.commits = f"http://127.0.0.1:{server.server_port}", []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_a_finished_run_is_pushed_once_and_whole_and_without_a_pickle(dataset, tmp_path, hub):
    argv = [*pretrain_arguments(dataset, tmp_path / "model"), "--num_train_epochs", "2", "--sessions", "ann"]
    push = ["--push_to_hub", "--hub_model_id", "lab/neds", "--hub_token", "hf_none"]
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / "pretrain.py"), *argv, *push],
        capture_output=True,
        text=True,
        env=environment | {"HF_HOME": str(tmp_path / "home")},
        timeout=200,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(hub.commits) == 1
    code = {"configuration_neds.py", "masking_neds.py", "modeling_neds.py", "processing_neds.py"}
    records = {"run.json", "metrics.json", "trainer_state.json", "README.md"}
    assert hub.commits[0] == {"config.json", "model.safetensors", "processor_config.json"} | code | records
