"""What the batch actions do, one engine per file: ``async run(step) -> {node: Outcome}``."""
