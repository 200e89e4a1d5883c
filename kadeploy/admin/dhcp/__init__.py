"""DHCP for nodes: what they are to be answered, in the languages of three servers, and what they ask."""
