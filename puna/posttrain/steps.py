"""Steps inside a stage, each an artifact of its own: a stage that takes hours and is killed goes on at the step.

work/STEP/...                 the artifact of a step, with its manifest
     .partial/STEP/out        one in the making
                  /work       its checkpoints
"""

import json
import shutil
from collections.abc import Callable
from os import rename
from pathlib import Path
from typing import Any

from puna.log import Log
from puna.run import read_manifest, work_folder, write_manifest

Make = Callable[[Path, Log], dict[str, Any]]


class Steps:
    """The steps of one stage, by name. A name may have slashes; it stands for all that its step depends on."""

    def __init__(self, folder: Path, log: Log) -> None:
        self.folder, self.log = folder, log

    def __getitem__(self, name: str) -> Path:
        """The folder of a step."""
        return self.folder / name

    def make(self, name: str, function: Make) -> dict[str, Any]:
        """The metrics of a step: function(out, log) makes it, unless it is there already."""
        final = self[name]
        if manifest := read_manifest(final):
            return manifest["metrics"]
        partial = self.folder / ".partial" / name.replace("/", "-")
        out = partial / "out"
        if read_manifest(out) is None:  # else it was whole already, and only the renaming is owed
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            work_folder(out).mkdir(exist_ok=True)
            metrics = function(out, self.log.part(name.replace("/", "-"), self.log.folder / self.log.stage))
            write_manifest(out, {"step": name, "metrics": metrics})
        final.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(final, ignore_errors=True)  # a damaged one
        rename(out, final)
        shutil.rmtree(partial)
        return json.loads((final / "manifest.json").read_text())["metrics"]
