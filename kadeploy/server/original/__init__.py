"""The REST interface of Kadeploy 3.2 and later, for the programs that speak it: its paths, its words, its numbers."""
