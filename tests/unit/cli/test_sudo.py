"""Tools that an account calls by sudo: every file that it names is opened, written and run as that account."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kadeploy.caller import account
from kadeploy.cli import operation
from kadeploy.config.site import Site
from kadeploy.state import rights
from kadeploy.state.database import connect
from tests.unit import build
from tests.unit.conftest import Tool

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root works for others")

DESCRIPTION = """\
name : mine
tarball : {folder}/image.tgz|tgz
kernel : /vmlinuz
fdisktype : 83
filesystem : ext4
environment_kind : linux
"""
NODE = "-m gdx-1.site"
DEPLOY = f"kadeploy3 {NODE} --dry-run"
NAMED = (
    f"{DEPLOY} -a {{secret}}",
    f"{DEPLOY} -a {{mine}} -k {{secret}}",
    f"{DEPLOY} -a {{mine}} -w {{secret}}",
    f"{DEPLOY} -a {{mine}} -w {{mine}} -x {{secret}}",
    f"{DEPLOY} -a {{mine}} --set-pxe-pattern {{secret}}",
    f"{DEPLOY} -a {{mine}} --set-custom-operations {{secret}}",
    f"{DEPLOY} -a {{mine}} -s {{secret}}",
    "kadeploy3 -f {secret} -a {mine}",
    f"kadeploy3 {NODE} -a {{mine}} -o {{secret}}",
    f"kadeploy3 {NODE} -a {{mine}} -n {{secret}}",
    f"kadeploy3 {NODE} -a {{mine}} --write-workflow-id {{secret}}",
    f"kadeploy3 {NODE} -a {{mine}} --known-hosts {{secret}}",
    "kareboot3 -f {secret}",
    f"kareboot3 {NODE} -r deploy_env -k {{secret}}",
    f"kareboot3 {NODE} -r set_pxe -w {{secret}}",
    f"kareboot3 {NODE} -o {{secret}}",
    f"kareboot3 {NODE} -s {{secret}}",
    "kapower3 --on -f {secret}",
    f"kapower3 --on {NODE} -n {{secret}}",
    f"kapower3 --on {NODE} -s {{secret}}",
    "kanodes3 -d -f {secret}",
    "kastat3 -d -f {secret}",
    "kaenv3 -a {secret}",
    "kaenv2to3 -k linux -f {secret}",
)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("line", NAMED)
def test_a_file_that_is_roots_alone_is_neither_read_nor_written_for_another_user(
    site: Site, tool: Tool, open_folder: Path, line: str
) -> None:
    connect(site)
    rights.add(site, "nobody", ["gdx-1.site"], ["*"])
    secret, mine = open_folder / "secret", open_folder / "mine"
    secret.write_text("the-sites-own\n")
    secret.chmod(0o600)
    (open_folder / "image.tgz").write_bytes(build.packed("image"))
    mine.write_text(DESCRIPTION.format(folder=open_folder))
    name, *words = line.format(secret=secret, mine=mine).split()
    done = tool(name, *words, SUDO_UID="65534")
    assert done.returncode == 1
    assert f"{secret}: Permission denied" in done.stderr or f"-s {secret}: " in done.stderr
    assert "the-sites-own" not in done.stdout + done.stderr
    assert secret.read_text() == "the-sites-own\n"


def test_the_script_of_the_end_runs_as_its_user_in_their_home(
    open_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = open_folder / "script"
    script.write_text('#!/bin/sh\nid -un; id -G; echo "$HOME $USER"\n')
    script.chmod(0o755)
    who = account("nobody")
    operation.check_script(str(script), who)
    operation.run_script(str(script), who)
    groups = " ".join(map(str, os.getgrouplist("nobody", who.gid)))
    told = set(capfd.readouterr().out.splitlines())
    assert told == {"nobody", groups, f"{who.home} nobody", f"The script {script} ended with status 0"}
