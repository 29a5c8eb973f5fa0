"""Puts into the wheel what a checkout has beside its packages, for `growclip init`; all else is in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
PROJECT = ("train.py", "configs/**/*.yaml", "ds_configs/*.json", "slurm/*.sh")
OWN = "slurm/site.sh"  # a site's settings are nobody else's


class BuildWithProject(build_py):
    """Adds the files as `growclip_ds/project/`; an editable install has them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._project_files().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *self._project_files()]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *([] if self.editable_mode else self._project_files().values())]

    def _project_files(self) -> dict[str, str]:
        """Where each file is, from the project's folder, and where the build puts it."""
        files = sorted(path.relative_to(ROOT).as_posix() for pattern in PROJECT for path in ROOT.glob(pattern))
        return {file: f"{self.build_lib}/growclip_ds/project/{file}" for file in files if file != OWN}


setup(cmdclass={"build_py": BuildWithProject})
