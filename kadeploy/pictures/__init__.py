"""How the past looks: what kastat3 writes into a file and the page shows is drawn here, from the same figures."""
