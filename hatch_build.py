"""Packs NiiVue into the page of `palpate serve` while a wheel is built, so that nothing is fetched at run time.

npm fetches exactly what `package-lock.json` names, checks it against the hashes there and runs none of its scripts. One
file and the licences of what is in it are kept, in `page/vendor/`, which git ignores.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PAGE = "src/palpate/server/page"
SHA256 = "d6c2be4feb1ad53b2ac76b4196da8d8fd2263b662b511c55ca0fd127eb6a6532"
"""Of `dist/index.js` of the NiiVue in `package-lock.json`: one module that imports nothing."""

WITHOUT = "PALPATE_WITHOUT_PAGE"
"""Set to 1, a wheel may be built whose page says that it is not complete."""


class Unpacked(Exception):
    """NiiVue could not be packed; the message says why and what to do."""


class PackPage(BuildHookInterface[Any]):
    """Before a wheel or an editable installation is made."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Pack NiiVue, unless it is there; only an editable installation may go without."""
        if os.environ.get(WITHOUT) == "1":
            return
        page = Path(self.root) / PAGE
        try:
            pack(page)
        except Unpacked as problem:
            if version != "editable":
                raise SystemExit(f"palpate: {problem}; or set {WITHOUT}=1 to build without the browser page") from None
            self.app.display_warning(f"palpate: {problem}. All but the browser page of `palpate serve` works.")


def pack(page: Path) -> None:
    """Put `vendor/niivue.js` and `vendor/LICENSES.txt` into the page; nothing happens if they are there.

    Raises:
        Unpacked: there is no npm, or it could not fetch, or what came is not what was named.
    """
    vendor = page / "vendor"
    if _sha256(vendor / "niivue.js") == SHA256 and (vendor / "LICENSES.txt").is_file():
        return
    npm = shutil.which("npm")
    if npm is None:
        raise Unpacked("the browser page needs NiiVue, and npm, which fetches it, is not here: install Node.js and npm")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(page / name, folder)
        command = [npm, "ci", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", "--loglevel=error"]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=600)
        except subprocess.TimeoutExpired:
            raise Unpacked(
                "npm did not fetch NiiVue within ten minutes: try again when the network is better"
            ) from None
        except subprocess.CalledProcessError as failed:
            said = str(failed.stderr).strip().splitlines()
            raise Unpacked(
                f"npm could not fetch NiiVue ({said[0] if said else failed}): is the network there?"
            ) from None
        modules = Path(folder) / "node_modules"
        built = modules / "@niivue/niivue/dist/index.js"
        if _sha256(built) != SHA256:
            raise Unpacked("the NiiVue that npm fetched is not the one that hatch_build.py names: nothing was packed")
        vendor.mkdir(exist_ok=True)
        (vendor / "LICENSES.txt").write_text(_licences(page, modules), encoding="utf-8")
        partial = vendor / "niivue.js.partial"
        shutil.copyfile(built, partial)
        partial.replace(vendor / "niivue.js")


def _licences(page: Path, modules: Path) -> str:
    """NiiVue's licence, which its package leaves out, and those of the packages that are bundled into its file."""
    texts = [("@niivue/niivue", (page / "NIIVUE_LICENSE.txt").read_text(encoding="utf-8"))]
    for path in sorted(modules.glob("**/[Ll][Ii][Cc][Ee][Nn][Ss][Ee]*")):
        if path.is_file():
            name = path.parent.relative_to(modules).as_posix()
            texts.append((name, path.read_text(encoding="utf-8", errors="replace")))
    return "\n\n".join(f"{name}\n{'=' * len(name)}\n\n{text.strip()}\n" for name, text in texts)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
