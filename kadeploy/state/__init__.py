"""What the site remembers: environments, rights, nodes and claims, the journal of workflows, the log."""

from kadeploy.state import drivers as drivers  # before anything here imports peewee
