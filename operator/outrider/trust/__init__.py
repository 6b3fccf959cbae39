"""What must be true before bytes are trusted: digests, keys, signatures. Pure, in numbered steps.

To read it top to bottom, read in this order, each module using only those before it:

1. `documents.py`: JSON and base64 of strangers, with one meaning or refused. `digest.py`: SHA-256.
2. `keys.py`: which public keys count, for what, and when. `signatures.py`: the only cryptography in here.
3. `evidence.py`: what can vouch for bytes, and how it is stored. `detached.py`: signatures as text.
4. `statement.py`, `bundle.py`, `cosign.py`: the formats. `chain.py`: from what was signed down to the file.
5. `verify.py`: the verdict. Operator, node and command line have no other.

`signing.py` is the author's half, for `outrider sign`: no operator and no node signs anything.
"""
