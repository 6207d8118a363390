"""What a device's memory is used for: the driver's figure, ours, and the owners."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuledger._library import Device, OwnerUsage, check, check_core, core, roles, torch_library

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OwnerShare:
    """What one owner has in use in one role."""

    owner: str
    role: str
    in_use: int
    count: int  # blocks


@dataclass(frozen=True)
class Balance:
    """The balance sheet of a device, in bytes. ``str()`` of it is the table.

    ``total - free == reserved + external + unattributed`` as the driver counts, ``reserved == in_use + pending + cached``, and
    ``in_use`` is the sum of the owners. What other threads do while it is made may be in one figure and not in another.
    """

    device: str
    total: int
    free: int
    reserved: int
    external: int  # what the interposer saw other libraries take; 0 where it is not loaded
    in_use: int
    pending: int  # freed, work outstanding
    cached: int
    owners: tuple[OwnerShare, ...]  # largest first

    @property
    def unattributed(self) -> int:
        """What the driver has given out and nobody here knows of: contexts, kernels, other processes; on the CPU, all other memory
        of the machine. Below 0 where reserved memory was never touched, which the CPU does not count."""
        return self.total - self.free - self.reserved - self.external

    @property
    def by_role(self) -> dict[str, int]:
        """Bytes in use by role, of the roles that have any."""
        found = {role: sum(o.in_use for o in self.owners if o.role == role) for role in roles()}
        return {role: size for role, size in found.items() if size}

    def table(self, owners: int = 10) -> str:
        """The figures, then the ``owners`` largest."""
        lines = [
            ("driver: total", self.total),
            ("driver: total - free", self.total - self.free),
            ("  reserved", self.reserved),
            ("    in use", self.in_use),
            *((f"      {role}", size) for role, size in self.by_role.items()),
            ("    pending", self.pending),
            ("    cached", self.cached),
            ("  external", self.external),
            ("  unattributed", self.unattributed),
        ]
        shown = [(f"  {o.owner} [{o.role}]", o.in_use) for o in self.owners[:owners]]
        rest = self.owners[owners:]
        if rest:
            shown.append((f"  {len(rest)} more", sum(o.in_use for o in rest)))
        width = max(len(text) for text, _ in lines + shown)
        rows = [f"{text:<{width}}  {size:>19,} B" for text, size in lines]
        if shown:
            rows += ["owners:", *(f"{text:<{width}}  {size:>19,} B" for text, size in shown)]
        return "\n".join([f"{self.device}", *rows])

    def __str__(self) -> str:
        return self.table()


def _devices() -> list[Device]:
    count, room = ctypes.c_uint64(), 0
    while True:
        found = (Device * room)()
        check_core(core().gpuledger_process_devices(found, room, ctypes.byref(count)))
        if count.value <= room:
            return list(found)[: count.value]
        room = count.value


def _name(device: Device) -> str:
    if device.upstream in (b"cuda", b"plugged"):  # plugged: through the allocator of a MemPool
        return f"cuda:{device.number}"
    return "cpu" if device.upstream.startswith(b"host") else device.upstream.decode()


def _shares(device: Device) -> list[OwnerShare]:
    names = list(roles())
    count, room = ctypes.c_uint64(), 0
    while True:
        found = (OwnerUsage * room)()
        check_core(core().gpuledger_process_owners(device.upstream, device.number, found, room, ctypes.byref(count)))
        if count.value <= room:
            break
        room = count.value + 16
    return [OwnerShare(o.owner.decode(errors="replace"), names[o.role], o.usage.in_use, o.usage.count) for o in found[: count.value]]


def _joined(shares: list[OwnerShare]) -> tuple[OwnerShare, ...]:
    by_payer: dict[tuple[str, str], OwnerShare] = {}
    for s in shares:
        other = by_payer.get((s.owner, s.role), OwnerShare(s.owner, s.role, 0, 0))
        by_payer[s.owner, s.role] = OwnerShare(s.owner, s.role, s.in_use + other.in_use, s.count + other.count)
    return tuple(sorted(by_payer.values(), key=lambda s: -s.in_use))


def _wanted(device: str | int | torch.device | None, there: list[Device]) -> str:
    if device is None:
        torch = sys.modules.get("torch")
        cuda = [d for d in there if d.upstream == b"cuda"]
        if cuda and torch is not None and torch.cuda.is_initialized():
            return f"cuda:{torch.cuda.current_device()}"
        return _name((cuda or there)[0]) if there else "cpu"
    if isinstance(device, int):
        return f"cuda:{device}"
    if str(device) == "cuda":
        torch = sys.modules.get("torch")
        started = torch is not None and torch.cuda.is_initialized()  # to ask would start CUDA
        return f"cuda:{torch.cuda.current_device() if started else 0}"
    return str(device)


def balance(device: str | int | torch.device | None = None) -> Balance:
    """The balance sheet of a device: ``"cuda"``, ``"cuda:1"``, ``1``, ``"cpu"``, a ``torch.device``; without one, PyTorch's
    current CUDA device if that has a ledger, else the first device that has. LookupError if it has none."""
    if torch_library.cache_info().currsize:  # loaded: this is about more than PyTorch
        check(torch_library().gpuledger_torch_name_workspaces())
    there = _devices()
    wanted = _wanted(device, there)
    found = [d for d in there if _name(d) == wanted]
    if not found:
        known = ", ".join(dict.fromkeys(map(_name, there))) or "none: no way in is attached, or nothing was allocated yet"
        raise LookupError(f"{wanted} has no ledger in this process; devices that have: {known}")
    sums = {name: sum(getattr(d, name) for d in found) for name in ("reserved", "external", "in_use", "pending", "cached")}
    shares = _joined([share for d in found for share in _shares(d)])
    return Balance(device=wanted, total=found[0].total, free=found[0].free, owners=shares, **sums)
