"""Lists all objects under a prefix as a plan does.

python list_by_shardkit.py s3://BUCKET/PREFIX
"""

import sys

from shardkit.storage.open import folder

if __name__ == "__main__":
    sys.stdout.write(str(len(folder(sys.argv[1]).objects())))
