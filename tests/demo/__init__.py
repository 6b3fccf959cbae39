"""`make demo`: Outrider's main job told as a story, on a real control plane, checked line by line."""
