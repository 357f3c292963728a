"""Prints what tags are, as python-tuf reads exported metadata: resolve.py ROOT URL MEMORY TAG...

Each line is a tag with the SHA-256 and the size of its manifest, or a tag alone if nobody has signed it.
"""

import sys

from tuf.ngclient import Updater

root, url, memory, *tags = sys.argv[1:]
with open(root, "rb") as file:
    updater = Updater(metadata_dir=memory, metadata_base_url=url, bootstrap=file.read())
updater.refresh()
for tag in tags:
    target = updater.get_targetinfo(tag)
    print(tag, *([] if target is None else [target.hashes["sha256"], target.length]))
