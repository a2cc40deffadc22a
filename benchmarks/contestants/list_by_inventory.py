"""Lists a folder of a bucket by the manifest of an S3 Inventory report, as a plan does.

python list_by_inventory.py s3://BUCKET/PREFIX MANIFEST
"""

import sys

from shardkit.storage.base import Access
from shardkit.storage.listed import list_from
from shardkit.storage.open import folder

if __name__ == "__main__":
    uri, manifest = sys.argv[1:]
    listed = list_from(manifest, uri, Access(), leave_out=folder("elsewhere"), need=("etag",))
    sys.stdout.write(str(len(listed.objects)))
