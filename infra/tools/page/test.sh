#!/usr/bin/env bash
# The web page in a real browser and the API under schemathesis, over a small system of its own. Leaves screenshots in target/page.
# Skips, and says so, where the tools can't be installed. LIKENESS_BINARIES: folder of the programs.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
binaries=${LIKENESS_BINARIES:-$root/target/debug}
out=$root/target/page
skip() { echo "SKIPPED: the web page was not tested in a browser: $*"; exit 0; }
mkdir -p "$out"

python=$out/venv/bin/python
[ -x "$python" ] || python3 -m venv "$out/venv" || skip "no python3 -m venv"
"$python" -m pip install -q playwright schemathesis nats-py || skip "pip can't install playwright, schemathesis and nats-py"
if ! command -v chromium chromium-browser google-chrome >/dev/null; then
  timeout 300 "$out/venv/bin/playwright" install --with-deps chromium >"$out/browser.log" 2>&1 || skip "no chromium, and playwright can't fetch one (apt install chromium)"
fi
axe=$out/package/axe.min.js
if [ ! -f "$axe" ]; then
  (cd "$out" && npm pack --silent axe-core >/dev/null && tar xzf axe-core-*.tgz package/axe.min.js) || echo "SKIPPED: axe-core (npm can't fetch it)"
fi

LIKENESS_NATS_SERVER=${LIKENESS_NATS_SERVER:-$("$root/infra/tools/nats-server.sh")}
export LIKENESS_NATS_SERVER
data=$(mktemp -d)
"$binaries/likeness" up "$data" --searchers 2 --json >"$data/up.log" 2>&1 &
up=$!
trap 'kill $up 2>/dev/null; wait $up || true; rm -rf "$data"' EXIT
for _ in $(seq 120); do grep -q '"http"' "$data/up.json" 2>/dev/null && grep -q 'http://' "$data/up.json" && break; sleep 0.5; done
url=$(sed -n 's/.*"http": *"\([^"]*\)".*/\1/p' "$data/up.json" || true)
[ -n "$url" ] || { cat "$data/up.log"; exit 1; }
likeness() { "$binaries/likeness" --up "$data" "$@"; }
likeness ingest parquet "$root/infra/demo/avatars.parquet" --dataset demo
likeness pipeline --dataset demo --epochs "${EPOCHS:-1}" || [ $? -eq 2 ]
generation=$(likeness jobs list --json | sed -n 's/.*"job": *"\(pipeline-[^"]*\)".*/\1/p' | head -1)
likeness releases promote "$generation" --report "$generation" >/dev/null
likeness releases promote "$generation" --report "$generation" >/dev/null
for _ in $(seq 120); do curl -sf "$url/readyz" >/dev/null && break; sleep 0.5; done

"$python" "$root/infra/tools/page/check.py" "$url" "$out/shots" $([ -f "$axe" ] && echo "$axe")
"$python" "$root/schemas/docs/examples/nats_search.py" "$(sed -n 's/.*"nats": *"\([^"]*\)".*/\1/p' "$data/up.json")" "$(curl -s "$url/v1/aliases/main/vocabulary" | sed 's/.*"attributes":\["\([^"]*\)".*/\1/')"
# What changes the system is left out, and the batch, which answers 200 and has a problem in place of each wrong question; requests that are well formed and ask for what is not there are answered with 404 or 422.
# It leaves a folder where it runs.
cd "$out"
"$out/venv/bin/schemathesis" run "$url/openapi.json" --url "$url" --max-examples "${EXAMPLES:-15}" --seed 1 --phases examples,coverage,fuzzing \
  --exclude-path-regex '/(events|removals|reconcile|promote|rollback|cancel|retry|batch)$' --exclude-method DELETE \
  --exclude-checks positive_data_acceptance,ignored_auth --request-timeout 60 --no-color
