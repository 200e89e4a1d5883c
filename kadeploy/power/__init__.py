"""How a machine is switched: by its BMC, or by a command of the site."""
