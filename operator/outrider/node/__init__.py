"""What runs in the init container on a node: pull by digest, verify, hand over."""
