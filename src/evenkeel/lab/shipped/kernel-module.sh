# Build the module in $IN/source.  Leaves $OUT/modules, $OUT/Module.symvers, $OUT/build.log and $OUT/output.json.
set -euo pipefail
found=$("$PYTHON" -m evenkeel.lab.kernel_headers "$SET_ARCH" --release "$SET_RELEASE" --flavour "$SET_FLAVOUR")
eval "$found" # HEADERS, RELEASE, KERNEL_ARCH, TRIPLET: our own words, quoted
case $TRIPLET in "$(gcc -dumpmachine 2>/dev/null || true)") prefix= ;; *) prefix=$TRIPLET- ;; esac
command -v "${prefix}gcc-12" >/dev/null || {
    echo "the compiler ${prefix}gcc-12 is not installed (Debian: gcc-12${prefix:+-${prefix%-}})" >&2
    exit 1
}
echo "building for $RELEASE with $("${prefix}gcc-12" --version | head -1)"

cp -r "$IN/source" source
# Folders differ from run to run; what is built must not.
flags="-ffile-prefix-map=$PWD/source=. -ffile-prefix-map=$HEADERS=/usr/src/linux"
flags+=" -ffile-prefix-map=$(dirname "$HEADERS")/=/usr/src/"
status=0
# Without BTF of its own, for which pahole would have to be here: a module loads without it.
# shellcheck disable=SC2086  # options are words
make -C "$HEADERS" M="$PWD/source" ARCH="$KERNEL_ARCH" CROSS_COMPILE="$prefix" -j"$JOBS" --output-sync=line \
    --no-print-directory CONFIG_DEBUG_INFO_BTF_MODULES= KCFLAGS="$flags" KAFLAGS="$flags" $SET_OPTIONS modules 2>&1 |
    sed "s|$PWD/source/||g; s|$HEADERS|/usr/src/linux|g; s|$(dirname "$HEADERS")/|/usr/src/|g" |
    tee "$OUT/build.log" || status=$?
[ "$status" = 0 ] || exit "$status"

mkdir "$OUT/modules"
find source -name '*.ko' -print0 | sort -z | xargs -0 -r cp -t "$OUT/modules"
[ -n "$(ls "$OUT/modules")" ] || { echo "no module was built: is there an obj-m in its Kbuild?" >&2; exit 1; }
sed "s|$PWD/source/||" source/Module.symvers | sort >"$OUT/Module.symvers"
"$PYTHON" - "$RELEASE" "$OUT" <<'END'
import json, pathlib, subprocess, sys

release, out = sys.argv[1], pathlib.Path(sys.argv[2])
modules = {}
for path in sorted((out / "modules").iterdir()):
    words = path.read_bytes().split(b"vermagic=")[1].partition(b"\0")[0].decode().strip()
    modules[path.stem] = {"vermagic": words, "size": path.stat().st_size}
symbols = len((out / "Module.symvers").read_text().splitlines())
answer = {"release": release, "modules": modules, "exported": symbols}
(out / "output.json").write_text(json.dumps(answer, indent=2))
END
