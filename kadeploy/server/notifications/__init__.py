"""Users are told that their operations have ended: by mail, and by calls of URLs of theirs (webhooks)."""
