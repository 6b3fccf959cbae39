"""What must be true before bytes are trusted: digests, keys, signatures. Pure, in numbered steps."""
