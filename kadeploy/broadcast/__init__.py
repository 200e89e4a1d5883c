"""One image to many nodes: a fault-tolerant pipeline of our own (`chain`, `relay`), and BitTorrent (`bittorrent`)."""
