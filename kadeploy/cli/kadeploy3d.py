"""kadeploy3d: the service of a site."""

from __future__ import annotations

from kadeploy.cli import shell

NAME = "kadeploy3d"

app = shell.Tool(
    "Serve this site to accounts that are not root's, here and on other machines.",
    examples={"kadeploy3d run": "Serve until SIGTERM."},
)


@app.callback()
def kadeploy3d(_version: shell.Version = False, _completion: shell.Completion = None) -> None:
    """Options of the command itself."""


def main() -> int:
    """Run the tool."""
    return shell.run(app, NAME)
