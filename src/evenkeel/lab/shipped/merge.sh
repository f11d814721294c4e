# Merge origin/$SET_BRANCH into origin/$SET_INTO.  Leaves $OUT/source when it merges, and $OUT/output.json.
set -euo pipefail
cd "$IN/tree"
case $SET_BRANCH$SET_INTO$SET_PATH in -* | *..*) echo "no such branch or path" >&2; exit 2 ;; esac
into=$(git rev-parse --verify "refs/remotes/origin/$SET_INTO^{commit}")
branch=$(git rev-parse --verify "refs/remotes/origin/$SET_BRANCH^{commit}")
# The same merge has the same commit, whoever makes it and when.
date=$(git log -1 --format=%cI "$branch")
export GIT_AUTHOR_DATE=$date GIT_COMMITTER_DATE=$date
git config user.name lab
git config user.email lab@localhost
git checkout --quiet --detach "$into"
conflict=false files='[]'
if git merge --no-ff --no-edit -m "Merge $SET_BRANCH into $SET_INTO" "$branch"; then
    mkdir "$OUT/source"
    git archive HEAD -- "$SET_PATH" | tar -x -C "$OUT/source"
    if [ "$SET_PATH" != . ]; then
        mv "$OUT/source/$SET_PATH" "$OUT/.part" && rm -rf "$OUT/source" && mv "$OUT/.part" "$OUT/source"
    fi
else
    conflict=true
    files=$(git diff --name-only --diff-filter=U -z |
        "$PYTHON" -c 'import json, sys; print(json.dumps([n for n in sys.stdin.read().split("\0") if n]))')
    [ "$files" != '[]' ] || exit 1 # it failed for another reason
fi
printf '{"conflict": %s, "files": %s, "into": "%s", "branch": "%s"}\n' "$conflict" "$files" "$into" "$branch" \
    >"$OUT/output.json"
