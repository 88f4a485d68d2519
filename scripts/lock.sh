#!/usr/bin/env bash
# lock.sh: write the hash-locked requirement files anew from their .in files, for Python 3.11 and newer on
# amd64 and arm64. No index address is written: which registry a machine installs from is its own business.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
  .venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
    --no-emit-index-url --no-emit-find-links "$@"
}
(cd files/gateway && PATH="$OLDPWD/.venv/bin:$PATH" && uv pip compile -q --universal --python-version 3.11 \
  --generate-hashes --no-header --no-emit-index-url --no-emit-find-links pyproject.toml --extra build -o requirements.lock)
for name in bootstrap runtime dev go bench; do
  (cd requirements && ../.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
    --no-emit-index-url --no-emit-find-links "$name.in" -o "$name.txt")
done
# A backdoored release is found within days (LiteLLM's was, in March 2026): take none that is younger than a week.
(cd requirements && ../.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
  --no-emit-index-url --no-emit-find-links --exclude-newer "$(date -u -d '7 days ago' +%FT00:00:00Z)" litellm.in -o litellm.txt)
