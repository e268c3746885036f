"""The book follows the house: what a cell may import or read decides whether its kept output still stands.

jupyter-cache looks at a page's cells only. Here the cache is a folder named after a hash of taxonomy, kernels, datasets
and records, and Sphinx reads every chapter again when that hash has changed.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WATCHED = {
    "taxonomy": (".py", ".yml"),
    "kernels": (".py",),
    "datasets": (".py", ".yml", ".npz", ".safetensors", ".jsonl"),
    "book/_ext": (".py",),
    ".cache/measurements": (".jsonl",),
}
CACHES = ROOT / ".cache" / "book"
KEPT = 3
STAMP = ".house"


def digest(root: Path = ROOT) -> str:
    """Sixteen hexadecimal digits that change with anything a page may show."""
    total = hashlib.sha256()
    for folder, suffixes in WATCHED.items():
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in suffixes and path.is_file():
                total.update(path.relative_to(root).as_posix().encode() + b"\0")
                total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def use_cache(app, config):
    from jupyter_cache import get_cache

    config.house_digest = digest()
    folder = CACHES / config.house_digest
    folder.mkdir(parents=True, exist_ok=True)
    folder.touch()
    get_cache(folder).list_cache_records()  # its tables exist before several readers ask at once
    config.nb_execution_cache_path = str(folder)
    caches = [path for path in CACHES.iterdir() if path.is_dir()]
    for old in sorted(caches, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def reread(app, env, added, changed, removed):
    """All pages, when the house is not the one they were read in."""
    before, env.house_digest = getattr(env, "house_digest", None), app.config.house_digest
    return set(env.found_docs) if before not in (None, app.config.house_digest) else set()


def stamp(app, exception):
    """Which house the pages in this folder show."""
    if not exception:
        (Path(app.outdir) / STAMP).write_text(app.config.house_digest, encoding="utf-8")


def setup(app):
    app.add_config_value("house_digest", "", "")
    app.connect("config-inited", use_cache)
    app.connect("env-get-outdated", reread)
    app.connect("build-finished", stamp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
