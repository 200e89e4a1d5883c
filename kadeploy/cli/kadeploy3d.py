"""kadeploy3d: the service of a site."""

from __future__ import annotations

from kadeploy.cli import shell, sites
from kadeploy.config.folder import configuration_folder, load_site

NAME = "kadeploy3d"

app = shell.Tool(
    "Serve this site to accounts that are not root's, here and on other machines.",
    examples={"kadeploy3d run": "Serve until SIGTERM."},
    about="It serves the site of /etc/kadeploy, or of KADEPLOY_CONFIG_DIR, as the account that it runs as.",
)


@app.callback()
def kadeploy3d(_version: shell.Version = False, _completion: shell.Completion = None) -> None:
    """Options of the command itself."""


@app.command()
def run() -> int:
    """Serve until SIGTERM."""
    from kadeploy.server import daemon  # noqa: PLC0415 - the framework

    folder = configuration_folder().resolve()
    return daemon.run(folder, sites.socket_of(load_site(folder), folder))


def main() -> int:
    """Run the tool."""
    return shell.run(app, NAME)
