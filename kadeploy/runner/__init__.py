"""How one attempt becomes one `ansible-playbook`: the request file, the inventory, the player and its results."""
