"""How a tool speaks to the service of a site."""
