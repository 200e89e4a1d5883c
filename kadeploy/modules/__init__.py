"""What the collection's modules ask of a site, by the way that the tools go, and how they answer Ansible."""
