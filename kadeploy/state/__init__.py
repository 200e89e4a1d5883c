"""What the site remembers: environments, rights, nodes and claims, the journal of workflows, the log."""
