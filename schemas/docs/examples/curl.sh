#!/usr/bin/env bash
# The gateway asked with curl: URL, an attribute, a JPEG of yours. Add -H "Authorization: Bearer $KEY" where keys are needed.
set -euo pipefail
url=$1 attribute=$2 image=$3

curl -sSf "$url/v1/search" -H 'content-type: application/json' \
  -d '{"k": 3, "terms": [{"term": {"attributes": {"with": ["'"$attribute"'"]}}}]}'
echo
curl -sSf "$url/v1/search/image" -F image=@"$image" -F 'request={"k": 3}'
echo
curl -sSf "$url/v1/jobs?limit=3"
echo
job=$(curl -sSf "$url/v1/jobs?limit=1" | sed 's/.*"job":"\([^"]*\)".*/\1/')
curl -sSfN "$url/v1/jobs/$job/events" # until the job's run is closed
