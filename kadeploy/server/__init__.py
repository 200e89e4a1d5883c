"""How many accounts use one site: `kadeploy3d`."""
