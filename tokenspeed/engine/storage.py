# SPDX-License-Identifier: MIT
"""Where KV is kept below the device, and what it is checked by: from a configuration to stores, stamps and a mover.

In: the cache's configuration, an arena, the checkpoint. Out: a `Storage`. A slab (`exec.slab`) is opened, or begun
anew where it is of another model, dtype, layout or device. All slabs share one hash key, that of the disk first: so
what they hold is found again. Slabs of other fingerprints in the same directory are removed, for the directory is
bounded.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tokenspeed.base.config import EngineConfig
from tokenspeed.base.errors import SetupError
from tokenspeed.base.log import get_logger
from tokenspeed.control import Scheduler, Tier
from tokenspeed.exec.arena import Arena
from tokenspeed.exec.slab import VERSION, Layout, Slab
from tokenspeed.exec.stamps import Checksums, Stamps
from tokenspeed.exec.tiers import HostRows, Mover, Store, adoptable

_log = get_logger("engine")
SHARED_MEMORY: Final = Path("/dev/shm")
SUFFIX: Final = ".tskv"


@dataclass(frozen=True, slots=True)
class Storage:
    """What there is below an arena; nothing of it where nothing was asked for."""

    hash_key: bytes
    host_blocks: int
    disk_blocks: int
    stores: dict[Tier, Store]
    stamps: Stamps | None
    mover: Mover | None

    def hand_over(self, scheduler: Scheduler) -> None:
        """Tell the scheduler what slabs hold from before."""
        for tier, (slots, hashes, parents) in adoptable(self.stores):
            if len(slots):
                placed = scheduler.adopt(tier, slots, hashes, parents)
                _log.info("%s tier: %d of %d blocks found again", tier.name.lower(), placed, len(slots))


def open_storage(config: EngineConfig, directory: Path, arena: Arena) -> Storage:
    """Make what the configuration asks for; `SetupError` where it cannot be had."""
    cache = config.cache
    checksums = Checksums(arena)
    tensors = arena.tensors()
    fingerprint = _fingerprint(config, directory, arena)
    host_blocks = cache.host_kv_bytes // checksums.block_bytes
    disk_blocks = cache.disk_kv_bytes // checksums.block_bytes if cache.disk_kv_dir is not None else 0
    for name, asked, blocks in (
        ("host-kv-bytes", cache.host_kv_bytes, host_blocks),
        ("disk-kv-bytes", cache.disk_kv_dir, disk_blocks),
    ):
        if asked and not blocks:
            raise SetupError(f"--{name} is less than one block of KV; give at least {checksums.block_bytes}")
    key = secrets.token_bytes(16)
    stores: dict[Tier, Store] = {}
    name = fingerprint.hex()[:16] + SUFFIX
    if disk_blocks:
        folder = Path(str(cache.disk_kv_dir)).expanduser()
        disk = Slab(folder / name, Layout(disk_blocks, checksums.block_bytes, fingerprint), key)
        _remove_others(folder, disk.path)
        stores[Tier.DISK], key = disk, disk.key
    if host_blocks and tensors[0].device.type == "cpu":
        folder = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
        layout = Layout(host_blocks, checksums.block_bytes, fingerprint)
        host = Slab(folder / f"tokenspeed-{os.getuid()}-{name}", layout, key)
        if host.key != key and disk_blocks:
            host.close(remove=True)  # of a time with another disk: its blocks would never be found
            host = Slab(host.path, layout, key)
        stores[Tier.HOST], key = host, host.key
    elif host_blocks:
        stores[Tier.HOST] = HostRows(host_blocks, checksums.block_bytes, pinned=True)
    stamps = None
    if cache.kv_integrity != "off":
        epoch = int.from_bytes(fingerprint[:8], "little", signed=True)
        stamps = Stamps(checksums, arena.blocks, sampled=cache.kv_integrity == "sampled", epoch=epoch)
    mover = Mover(checksums, stores, stamps) if stores else None
    return Storage(key, host_blocks, disk_blocks, stores, stamps, mover)


def _fingerprint(config: EngineConfig, directory: Path, arena: Arena) -> bytes:
    """32 bytes that differ wherever KV of the same tokens could."""
    digest = hashlib.sha256(f"kv {VERSION}".encode())
    digest.update((directory / "config.json").read_bytes())
    for path in sorted(directory.glob("*.safetensors")):
        facts = path.stat()
        digest.update(f"{path.name} {facts.st_size} {facts.st_mtime_ns}".encode())
    model = config.model
    digest.update(repr((model.load_format, model.layers, model.seed, model.quantization)).encode())
    for tensor in arena.tensors():
        digest.update(repr((tensor.dtype, tuple(tensor.shape[1:]), tensor.device.type)).encode())
    return digest.digest()


def _remove_others(folder: Path, own: Path) -> None:
    for path in folder.glob(f"*{SUFFIX}"):
        if path != own:
            with _lock(path) as free:
                if free:
                    _log.info("removing %s: it is of another model", path.name)
                    path.unlink(missing_ok=True)


@contextmanager
def _lock(path: Path) -> Generator[bool]:
    """Whether nobody else has the file open as a slab."""
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except OSError:
        yield False
    finally:
        os.close(file)
