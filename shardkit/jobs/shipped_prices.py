"""Prices of common instance types, as they were at one time in one region: for a first idea, where nobody was asked."""

from __future__ import annotations

import datetime

DATED = datetime.date(2024, 12, 31)
REGION = "us-east-1"
# US dollars an hour on demand; Processing and training jobs cost the same.
USD = {
    "ml.t3.medium": 0.05,
    "ml.t3.large": 0.10,
    "ml.t3.xlarge": 0.20,
    "ml.t3.2xlarge": 0.399,
    "ml.m5.large": 0.115,
    "ml.m5.xlarge": 0.23,
    "ml.m5.2xlarge": 0.461,
    "ml.m5.4xlarge": 0.922,
    "ml.m5.8xlarge": 1.843,
    "ml.m5.12xlarge": 2.765,
    "ml.m5.16xlarge": 3.686,
    "ml.m5.24xlarge": 5.53,
    "ml.c5.large": 0.102,
    "ml.c5.xlarge": 0.204,
    "ml.c5.2xlarge": 0.408,
    "ml.c5.4xlarge": 0.816,
    "ml.c5.9xlarge": 1.836,
    "ml.c5.18xlarge": 3.672,
    "ml.r5.large": 0.151,
    "ml.r5.xlarge": 0.302,
    "ml.r5.2xlarge": 0.605,
    "ml.r5.4xlarge": 1.21,
    "ml.r5.8xlarge": 2.419,
    "ml.r5.12xlarge": 3.629,
    "ml.r5.16xlarge": 4.838,
    "ml.r5.24xlarge": 7.258,
    "ml.g4dn.xlarge": 0.736,
    "ml.g4dn.2xlarge": 0.94,
    "ml.g4dn.4xlarge": 1.505,
    "ml.g4dn.8xlarge": 2.72,
    "ml.g4dn.12xlarge": 4.89,
}
