#!/bin/sh
# Starts a pass of shardkit in a container: finds a Python that will do, and hands over to bootstrap.py beside it.
here=$(dirname "$0")
for python in ${SHARDKIT_PYTHON:-} python3 python python3.13 python3.12 python3.11 python3.10; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        exec "$python" "$here/bootstrap.py" "$@"
    fi
done
message="The image has no Python of 3.10 or newer on its PATH. Use another image, or name one in the variable SHARDKIT_PYTHON."
mkdir -p /opt/ml/output
echo "$message" | tee /opt/ml/output/message /opt/ml/output/failure >&2
exit 1
