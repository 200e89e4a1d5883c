"""What one task does on all nodes: the shell that Ansible calls, and one engine per file, ``async run(step)``."""
