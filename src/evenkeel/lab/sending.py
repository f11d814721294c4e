"""Send a graph in with the files beside it: what `evenkeel lab submit` does.

Inputs that are files of whoever submits become contents of the lab, brought before the graph is sent.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from evenkeel.errors import WrongInput
from evenkeel.lab.client import Client
from evenkeel.lab.runner import FOLDER, pack, sha256_of
from evenkeel.lab.step import Graph
from evenkeel.lab.transfer import upload


def send(client: Client, graph: Graph, files_from: Path, **more: Any) -> Any:
    """The submission, as the lab answers it.  ``more``: team, urgent, reason.  Raises WrongInput for a missing file."""
    with tempfile.TemporaryDirectory() as packed:
        files: dict[str, Path] = {}
        steps = {}
        for name, use in graph.steps.items():
            inputs = dict(use.inputs)
            for key, given in use.inputs.items():
                if given.file is None:
                    continue
                path = files_from / given.file
                if not path.exists():
                    if given.optional:
                        inputs[key] = given.model_copy(update={"file": None})
                        continue
                    raise WrongInput(f'step "{name}", input "{key}": there is no {path}')
                media = ""
                if path.is_dir():
                    folder, path, media = path, Path(packed) / f"{len(files)}.tar", FOLDER
                    pack(folder, path)
                sha256 = sha256_of(path)
                files[sha256] = path
                inputs[key] = given.model_copy(update={"file": None, "content": sha256, "media": media})
            steps[name] = use.model_copy(update={"inputs": inputs})
        if files:
            upload(client, files)
        whole = graph.model_copy(update={"steps": steps})
        return client.post("/submissions", {"graph": whole.model_dump(mode="json"), **more})
