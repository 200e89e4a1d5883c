"""Everything about a site that can be known before a node is lost: one topic per file, in the order of `TOPICS`.

A topic is a function that looks at a `Subject` and yields what it finds. It changes nothing, and it says so where it
cannot look: for want of a privilege, or of a program.
"""
