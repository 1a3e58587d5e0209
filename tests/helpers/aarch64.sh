#!/usr/bin/env bash
# Cross-compile the CPU operators for aarch64 and run their tests under qemu-user.
# usage: tests/helpers/aarch64.sh PYTHON [arguments of pytest]
#
# Debian only; first, as root: apt-get install g++-aarch64-linux-gnu qemu-user. PYTHON
# builds, and needs setuptools. An aarch64 Python (16 MB) and torch (140 MB) are
# downloaded once, to AARCH64_DIR. Prints "skipped" and the reason where something is
# missing.
set -eu
cd "$(dirname "$0")/../.."
python=$1
shift
work=${AARCH64_DIR:-work_dirs/aarch64}
torch=2.8.0 # its aarch64 wheel on PyPI is without CUDA
skip() { echo "skipped: $*"; exit 0; }

for tool in aarch64-linux-gnu-g++ aarch64-linux-gnu-objdump qemu-aarch64 apt-get dpkg; do
    command -v "$tool" > /dev/null || skip "there is no $tool; as root: apt-get" \
        "install g++-aarch64-linux-gnu qemu-user"
done
mkdir -p "$work"
work=$(cd "$work" && pwd)
root=$work/root site=$work/site package=$work/package

echo '== 1/4 an aarch64 Python and torch'
if [ ! -f "$work/ready" ]; then
    rm -rf "$root" "$site" "$work/apt"
    mkdir -p "$root" "$work/apt/lists/partial" "$work/apt/cache/archives/partial"
    # state of its own: neither root nor a foreign architecture of the system is needed
    : > "$work/apt/status"
    cat > "$work/apt/conf" <<CONF
APT { Architecture "arm64"; Architectures { "arm64"; }; Install-Recommends "false"; };
APT::Sandbox::User "$(id -un)";
Dir { State "$work/apt"; State::status "$work/apt/status"; Cache "$work/apt/cache"; };
CONF
    export APT_CONFIG=$work/apt/conf
    { apt-get -q update && apt-get -qy --download-only install \
        python3-minimal libpython3-stdlib libstdc++6 libgomp1; } \
        > "$work/apt/log" 2>&1 || skip "apt has no arm64 packages: $work/apt/log"
    for file in "$work"/apt/cache/archives/*.deb; do dpkg -x "$file" "$root"; done
    version=$(basename "$(readlink "$root/usr/bin/python3")")
    # pip reads conditions for the machine that it runs on, so all are named
    "$python" -m pip install -q --no-deps --target "$site" --only-binary :all: \
        --python-version "${version#python}" --platform manylinux_2_28_aarch64 \
        --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
        torch==$torch filelock fsspec jinja2 markupsafe mpmath networkx sympy \
        typing-extensions numpy pytest iniconfig packaging pluggy pygments hypothesis \
        sortedcontainers || skip "pip has no wheels for aarch64 and $version"
    # a name of its own: tests start Python by sys.executable
    cat > "$root/usr/bin/qemu-python" <<SH
#!/bin/sh
exec qemu-aarch64 -0 "\$0" -L "$root" "$root/usr/bin/$version" "\$@"
SH
    chmod +x "$root/usr/bin/qemu-python"
    touch "$work/ready"
fi

echo '== 2/4 operators, compiled as in a wheel'
rm -rf "$package"
mkdir -p "$package/dlu_mmdet"
# the operators need torch alone: an empty package holds them
cp -r dlu_mmdet/ops dlu_mmdet/utils "$package/dlu_mmdet"
: > "$package/dlu_mmdet/__init__.py"
CC=aarch64-linux-gnu-gcc CXX=aarch64-linux-gnu-g++ \
    LDSHARED='aarch64-linux-gnu-g++ -shared' LDCXXSHARED='aarch64-linux-gnu-g++ -shared' \
    DLU_MMDET_NO_EXT=0 "$python" setup.py -q build_ext --build-lib "$package" \
    --build-temp "$work/build" > "$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
library=$package/dlu_mmdet/_C.abi3.so
[ -f "$library" ] || { cat "$work/build.log"; exit 1; }

echo '== 3/4 NEON: fused multiply-adds of vectors'
aarch64-linux-gnu-objdump -d --no-show-raw-insn "$library" > "$work/code"
for vector in 4s 2d; do # float32, float64
    count=$(grep -c "fmla.*\.$vector" "$work/code") || {
        echo "no vector instructions for .$vector: $work/code"
        exit 1
    }
    echo "fmla .$vector: $count"
done

echo '== 4/4 tests under qemu'
cp -r tests pyproject.toml "$package"
export PYTHONPATH=$site:$package:$package/tests OMP_NUM_THREADS=1
cd "$package"
shopt -s globstar
"$root/usr/bin/qemu-python" tests/**/one_wheel.py .
# conftest.py needs MMDetection; torch.compile would compile for this machine; what torch
# makes of the operators is the same on every processor. Hypothesis' profile "ci" has no
# limit on time.
"$root/usr/bin/qemu-python" -m pytest --noconftest -p no:cacheprovider -m 'not slow' \
    -k 'not (compile or mmengine or opcheck or any_order or random_calls)' \
    --hypothesis-profile ci "$@" tests/**/test_ops.py tests/**/test_ops_fused.py
