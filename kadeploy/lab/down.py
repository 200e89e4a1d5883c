"""Taking a lab down, whatever state it is in."""

from __future__ import annotations

import shutil
from pathlib import Path

from kadeploy.lab import control, daemon, network
from kadeploy.lab.lab import MARKER, STATE_ROOT, Lab, saved
from kadeploy.lab.virtual import Say


def down(name: str, folder: str, say: Say, *, keep_disks: bool = False) -> bool:
    """End the lab's processes, remove its network and its files; returns whether there was anything.

    Works after a crash as well: processes are found by the supervisor's process file and by their namespace.
    """
    lab = saved(name, folder) or Lab(name=name, folder=folder)
    found = halt(lab, say)
    removed = remove_files(lab, keep_disks=keep_disks)
    if daemon.remove_account():
        say(f"account {daemon.ACCOUNT} removed")
    if removed:
        say("files removed, disks kept" if keep_disks else "files removed")
        found = True
    return found


def halt(lab: Lab, say: Say) -> bool:
    """End what runs and leave the lab's folder as it is; returns whether anything ran."""
    supervisor = control.running(lab)
    if supervisor:
        supervisor.end(patience=30.0)
        say("machines and services stopped")
    there = network.exists(lab.name)
    if there:
        network.remove(lab.name)
        say("network removed")
    return supervisor is not None or there


def remove_files(lab: Lab, *, keep_disks: bool) -> bool:
    """Remove the lab's folders, but nothing that is not a lab's."""
    marked = (lab.root / MARKER).exists()
    found = lab.run.exists() or (marked and not keep_disks)
    shutil.rmtree(lab.run, ignore_errors=True)
    if marked:
        for entry in lab.root.iterdir():
            if entry.name not in ({lab.disks.name, MARKER} if keep_disks else {MARKER}):
                _remove(entry)
        if not keep_disks:
            (lab.root / MARKER).unlink()
            _remove_empty(lab.root)
    elif found:  # `up` was killed before it marked the folder as a lab's
        _remove_empty(lab.root)
    _remove_empty(STATE_ROOT)
    return found


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
