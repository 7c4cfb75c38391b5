"""What starts Requiem where it is installed: a script of our own, or the program that installers make for Windows.

An installer would leave our script out for a command of the same name, so there is but one of the two.
"""

from __future__ import annotations

import sys
import sysconfig
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

MAIN = "requiem_build.__main__:main"


class Commands(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        metadata["scripts"] = {"requiem-build": MAIN} | ({"requiem": MAIN} if sys.platform == "win32" else {})


class Script(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        if sys.platform == "win32":
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"
        else:
            build_data["shared_scripts"]["bin/requiem"] = "requiem"
