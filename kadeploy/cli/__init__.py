"""The command line tools, one file each."""

TOOLS = (
    "kadeploy3",
    "kareboot3",
    "kaenv3",
    "kanodes3",
    "kastat3",
    "kapower3",
    "kaconsole3",
    "karights3",
    "kaenv2to3",
    "kadeploy3d",
    "kadeploy-site",
    "kadeploy-bootserver",
    "kadeploy-worker",
    "kadeploy-lab",
)
"""Their names; the module is named alike, with ``_`` for ``-``."""
