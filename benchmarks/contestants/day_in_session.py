"""Makes a day, and makes it again each time one of its objects has changed, in one process. Prints seconds as JSON.

python day_in_session.py s3://BUCKET/PREFIX OUT WORKERS KEY...
"""

import json
import statistics
import sys
import time
from pathlib import Path

import boto3

import shardkit as sk

if __name__ == "__main__":
    source, out, workers, *keys = sys.argv[1:]
    pipeline = sk.Pipeline(
        function="ads:ad_features",
        source_dir=str(Path(__file__).resolve().parents[2] / "examples" / "talent_jsonl"),
        input={"uri": source, "pattern": "*.jsonl"},
        output=out,
        shards={"by": "date", "path": "{Y}/{m}/{d}"},
        workers=int(workers),
    )
    client, bucket = boto3.client("s3"), source.split("/")[2]
    seconds = []
    for key in [None, *keys]:
        if key is not None:
            lines = client.get_object(Bucket=bucket, Key=key)["Body"].read().splitlines(keepends=True)
            client.put_object(Bucket=bucket, Key=key, Body=b"".join(lines[1:] + lines[:1]))
        begun = time.perf_counter()
        pipeline.run(quiet=True)
        seconds.append(time.perf_counter() - begun)
    sys.stdout.write(json.dumps({"full_s": seconds[0], "redone_s": statistics.median(seconds[1:])}))
