"""Lists all objects under a prefix, by s3fs.

python list_by_s3fs.py s3://BUCKET/PREFIX
"""

import sys

import s3fs

if __name__ == "__main__":
    sys.stdout.write(str(len(s3fs.S3FileSystem().find(sys.argv[1], detail=True))))
