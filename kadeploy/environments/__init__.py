"""What an environment is: its data, the forms it is described in, its image."""
